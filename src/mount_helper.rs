//! Being called by mount(8): `/sbin/mount.fuse.barmanfs SOURCE DIRECTORY -o OPTIONS`.
//!
//! A link of that name (or `mount.barmanfs`) to this program makes a line of fstab work. The source is the
//! configuration file, the options are those of `barmanfs mount` with underscores.

use std::ffi::{OsStr, OsString};
use std::path::Path;

/// Names this program answers to as a helper of mount(8).
const HELPER_NAMES: &[&str] = &["mount.barmanfs", "mount.fuse.barmanfs"];
/// Options of fstab that are about when to mount or that a read-only file system has anyway.
const MEANT_FOR_OTHERS: &[&str] = &[
    "defaults",
    "auto",
    "noauto",
    "nofail",
    "_netdev",
    "user",
    "nouser",
    "users",
    "owner",
    "group",
    "ro",
    "rw",
    "exec",
    "noexec",
    "suid",
    "nosuid",
    "dev",
    "nodev",
    "atime",
    "noatime",
    "relatime",
    "norelatime",
    "diratime",
    "nodiratime",
    "async",
    "sync",
];
/// Options of `barmanfs mount` without a value.
const FLAGS: &[&str] = &["allow_other"];
/// Options of `barmanfs mount` with one.
const VALUES: &[&str] = &["server", "uid", "gid", "cache_size", "config", "log_level"];

/// The arguments as `barmanfs` understands them: unchanged unless mount(8) is calling.
pub(crate) fn translate(arguments: Vec<OsString>) -> Vec<OsString> {
    let name = arguments
        .first()
        .map(Path::new)
        .and_then(Path::file_name)
        .and_then(OsStr::to_str);
    match name {
        Some(name) if HELPER_NAMES.contains(&name) => mount_arguments(arguments),
        _ => arguments,
    }
}

fn mount_arguments(arguments: Vec<OsString>) -> Vec<OsString> {
    let mut arguments = arguments.into_iter();
    let mut result: Vec<OsString> = arguments.next().into_iter().chain(["mount".into()]).collect();
    let mut plain = 0;
    while let Some(argument) = arguments.next() {
        match argument.to_str() {
            Some("-o") => {
                let options = arguments.next().unwrap_or_default();
                let options = options.to_string_lossy();
                options
                    .split(',')
                    .filter(|option| !option.is_empty())
                    .for_each(|o| result.extend(option(o)));
            }
            // The type, the name space: nothing to do with us.
            Some("-t" | "-N") => drop(arguments.next()),
            Some("-n" | "-s" | "-w" | "-r") => {}
            Some(flag) if flag.starts_with('-') => result.push(argument),
            _ => {
                plain += 1;
                // "barmanfs" and "none" stand for the usual configuration.
                let is_source = plain == 1;
                match is_source {
                    true if argument.as_encoded_bytes().starts_with(b"/") => {
                        result.extend(["--config".into(), argument])
                    }
                    true => {}
                    false => result.push(argument),
                }
            }
        }
    }
    result
}

/// An option of fstab as arguments; an unknown one becomes an unknown argument, for the parser to refuse.
fn option(option: &str) -> Vec<OsString> {
    let (name, value) = option
        .split_once('=')
        .map_or((option, None), |(name, value)| (name, Some(value)));
    if MEANT_FOR_OTHERS.contains(&option) || name.starts_with("x-") || name == "comment" {
        return Vec::new();
    }
    let flag = format!("--{}", name.replace('_', "-"));
    match value {
        Some(value) if VALUES.contains(&name) => vec![flag.into(), value.into()],
        None if FLAGS.contains(&name) => vec![flag.into()],
        _ => vec![format!("--{option}").into()],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn translated(line: &str) -> String {
        let words = translate(line.split(' ').map(OsString::from).collect());
        words
            .iter()
            .map(|word| word.to_string_lossy())
            .collect::<Vec<_>>()
            .join(" ")
    }

    #[test]
    fn only_a_helper_is_translated() {
        assert_eq!(
            translated("/usr/bin/barmanfs mount /mnt -o x"),
            "/usr/bin/barmanfs mount /mnt -o x"
        );
    }

    #[test]
    fn a_line_of_fstab_becomes_a_mount() {
        assert_eq!(
            translated(
                "/sbin/mount.fuse.barmanfs /etc/b.conf /mnt/b -o rw,nofail,x-systemd.automount,allow_other,uid=postgres,cache_size=1G -t fuse.barmanfs"
            ),
            "/sbin/mount.fuse.barmanfs mount --config /etc/b.conf /mnt/b --allow-other --uid postgres --cache-size 1G"
        );
        assert_eq!(
            translated("mount.barmanfs barmanfs /mnt/b -v"),
            "mount.barmanfs mount /mnt/b -v"
        );
    }

    #[test]
    fn an_unknown_option_is_left_to_the_parser() {
        assert_eq!(
            translated("mount.barmanfs none /m -o speed=9"),
            "mount.barmanfs mount /m --speed=9"
        );
        let words = translate(
            ["mount.barmanfs", "none", "/m", "-o", "speed=9"]
                .map(OsString::from)
                .to_vec(),
        );
        assert!(crate::cli::command().try_get_matches_from(words).is_err());
    }
}
