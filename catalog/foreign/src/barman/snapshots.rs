//! `snapshots_info` of a `backup.info`: the snapshots of disks that hold a backup's data, in a cloud.

use std::fmt;

use super::literal::Literal;

/// The snapshots of one backup.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Snapshots {
    /// The cloud: `gcp`, `azure`, `aws`.
    pub provider: Option<String>,
    /// One for each disk.
    pub disks: Vec<Disk>,
}

/// The snapshot of one disk.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Disk {
    /// What the cloud calls the snapshot.
    pub snapshot: Option<String>,
    /// Where the disk was mounted on the server.
    pub mount_point: Option<String>,
}

/// By these keys the clouds know a snapshot: AWS by its id, whose name is only a label.
const NAMES: [&str; 2] = ["snapshot_id", "snapshot_name"];

impl Snapshots {
    /// Reads the value. What is not understood of it is left out: that the backup has snapshots is known all the same.
    pub(super) fn parse(text: &str) -> Self {
        let Ok(all) = Literal::parse(text) else {
            return Self::default();
        };
        let disks = all.value_of("snapshots").and_then(Literal::as_list);
        Self {
            provider: text_of(&all, "provider"),
            disks: disks.unwrap_or_default().iter().map(disk).collect(),
        }
    }
}

fn disk(found: &Literal) -> Disk {
    let provider = found.value_of("provider");
    let mount = found.value_of("mount");
    Disk {
        snapshot: provider.and_then(|provider| NAMES.iter().find_map(|name| text_of(provider, name))),
        mount_point: mount.and_then(|mount| text_of(mount, "mount_point")),
    }
}

fn text_of(dict: &Literal, key: &str) -> Option<String> {
    dict.value_of(key).and_then(Literal::as_text).map(str::to_owned)
}

/// `gcp: snapshot1 of the disk at /opt/data, snapshot2 of the disk at /opt/fast`
impl fmt::Display for Snapshots {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let unknown = "unknown";
        let shown = |text: &Option<String>| super::shown(text.as_deref().unwrap_or(unknown));
        write!(f, "{}: ", shown(&self.provider))?;
        if self.disks.is_empty() {
            return f.write_str(unknown);
        }
        for (number, disk) in self.disks.iter().enumerate() {
            let comma = if number == 0 { "" } else { ", " };
            let (snapshot, point) = (shown(&disk.snapshot), shown(&disk.mount_point));
            write!(f, "{comma}{snapshot} of the disk at {point}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn snapshots_of_each_cloud_are_named() {
        for (text, expected) in [
            (
                "{'provider': 'gcp', 'provider_info': {'project': 'p'}, 'snapshots': [{'mount': {'mount_options': \
                 'rw,noatime', 'mount_point': '/opt/disk0'}, 'provider': {'device_name': 'd', 'snapshot_name': 's0', \
                 'snapshot_project': 'p'}}, {'mount': {'mount_options': 'rw', 'mount_point': '/opt/disk1'}, 'provider': \
                 {'device_name': 'e', 'snapshot_name': 's1', 'snapshot_project': 'p'}}]}",
                "gcp: s0 of the disk at /opt/disk0, s1 of the disk at /opt/disk1",
            ),
            (
                "{'provider': 'aws', 'provider_info': {'account_id': 'a', 'region': 'r'}, 'snapshots': [{'mount': \
                 {'mount_options': 'rw', 'mount_point': '/data'}, 'provider': {'device_name': '/dev/sdf', 'snapshot_id': \
                 'snap-0123', 'snapshot_name': 'label', 'snapshot_lock_mode': None}}]}",
                "aws: snap-0123 of the disk at /data",
            ),
            (
                "{'provider': 'azure', 'snapshots': [{'provider': {'lun': 1, 'snapshot_name': 's'}}]}",
                "azure: s of the disk at unknown",
            ),
            ("{'snapshots': 7}", "unknown: unknown"),
            ("nonsense", "unknown: unknown"),
        ] {
            assert_eq!(Snapshots::parse(text).to_string(), expected, "{text}");
        }
    }
}
