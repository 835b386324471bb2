//! A place in an object store: in the gateway of Ceph that `scripts/test.sh` starts, or else in a directory.

use std::fs;

use super::Site;

/// The gateway of Ceph: endpoint, bucket, access key and secret key.
pub(crate) fn gateway() -> Option<[String; 4]> {
    let given = std::env::var("BARMANFS_TEST_S3").ok()?;
    let given: Vec<String> = given.split_whitespace().map(str::to_owned).collect();
    given.try_into().ok()
}

/// A place of its own, which `site` reaches with its configuration.
pub(crate) fn place(site: &Site, name: &str) -> String {
    let Some(bucket) = reach(site) else {
        return format!("file://{}", site.path(name).display());
    };
    // The directory of a site is no other's.
    let own = site.path("").file_name().unwrap().to_string_lossy().into_owned();
    format!("s3://{bucket}/{own}-{}/{name}", std::process::id())
}

/// Adds to the configuration how to get there. Returns the bucket, if there is one.
pub(crate) fn reach(site: &Site) -> Option<String> {
    let [endpoint, bucket, key, secret] = gateway()?;
    site.make_directory(".aws");
    let credentials = format!("[copies]\naws_access_key_id = {key}\naws_secret_access_key = {secret}\n");
    site.write_file(".aws/credentials", credentials.as_bytes());
    let keys = format!("[barmanfs]\nbucket_endpoint = {endpoint}\nbucket_profile = copies\n");
    let config = fs::read_to_string(site.config()).unwrap();
    if !config.contains("bucket_endpoint") {
        let config = config.replacen("[barmanfs]\n", &keys, 1);
        site.write_file("barmanfs.conf", config.as_bytes());
    }
    Some(bucket)
}

/// Makes a place the repository of a site, with a cache of its own.
pub(crate) fn use_place(site: &Site, url: &str) {
    reach(site);
    let config = fs::read_to_string(site.config()).unwrap();
    let here = format!("repository = {}\n", site.repository().display());
    let there = format!("repository = {url}\ncache = {}\n", site.path("cache").display());
    assert!(config.contains(&here), "{config}");
    site.write_file("barmanfs.conf", config.replacen(&here, &there, 1).as_bytes());
}
