//! This host and this program.

use std::path::Path;

use serde_json::{Value, json};

/// The device of all FUSE mounts.
const FUSE_DEVICE: &str = "/dev/fuse";

/// What is known of the host.
pub(super) fn of() -> Value {
    let user = nix::unistd::User::from_uid(nix::unistd::geteuid());
    json!({
        "version": env!("CARGO_PKG_VERSION"),
        "repository_format": barmanfs_store::layout::FORMAT_VERSION,
        "program": std::env::current_exe().ok().map(|path| path.display().to_string()),
        "kernel": kernel(),
        "distribution": distribution(),
        "user": user.ok().flatten().map(|user| user.name),
        "cores": std::thread::available_parallelism().ok(),
        "fuse_device": Path::new(FUSE_DEVICE).exists(),
        "fusermount3": program("fusermount3"),
    })
}

/// Name, release and version of the kernel, see proc(5).
fn kernel() -> Option<String> {
    let text = std::fs::read_to_string("/proc/version").ok()?;
    Some(text.trim().to_owned())
}

/// `PRETTY_NAME` of os-release(5).
fn distribution() -> Option<String> {
    let text = std::fs::read_to_string("/etc/os-release").ok()?;
    let name = text.lines().find_map(|line| line.strip_prefix("PRETTY_NAME="))?;
    Some(name.trim_matches('"').to_owned())
}

/// Where a program is that would be run.
fn program(name: &str) -> Option<String> {
    let path = std::env::var_os("PATH")?;
    let mut found = std::env::split_paths(&path).map(|directory| directory.join(name));
    found
        .find(|path| path.is_file())
        .map(|path| path.display().to_string())
}
