//! Calls by mount(8): `/sbin/mount.fuse.barmanfs SOURCE DIRECTORY -o OPTIONS`.
//!
//! With a link of that name (or `mount.barmanfs`) to this program, a line of fstab works. The source is always the word
//! `barmanfs`. The options are those of `barmanfs mount` with underscores, and `config=FILE`.

use std::ffi::{OsStr, OsString};
use std::path::Path;

/// Program names under which this program is a helper of mount(8).
const HELPER_NAMES: &[&str] = &["mount.barmanfs", "mount.fuse.barmanfs"];
/// The first field of a line of fstab, which the kernel shows as the mount's source.
const SOURCE: &str = "barmanfs";
/// Options of fstab that control when to mount, or that describe a read-only file system anyway.
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
/// Maximum number of wrong, missing or swapped letters for an option to count as a misspelt one.
const TYPOS: usize = 2;
/// Options of `barmanfs mount` without a value.
const FLAGS: &[&str] = &["allow_other"];
/// Options of `barmanfs mount` with a value.
const VALUES: &[&str] = &[
    "server",
    "uid",
    "gid",
    "cache_size",
    "recovery_target_action",
    "config",
    "log_level",
];

/// The arguments in the form of `barmanfs`: unchanged unless mount(8) is calling. An error describes what is wrong with
/// the line of fstab.
pub(crate) fn translate(arguments: Vec<OsString>) -> Result<Vec<OsString>, String> {
    let name = arguments
        .first()
        .map(Path::new)
        .and_then(Path::file_name)
        .and_then(OsStr::to_str);
    match name {
        Some(name) if HELPER_NAMES.contains(&name) => mount_arguments(arguments),
        _ => Ok(arguments),
    }
}

fn mount_arguments(arguments: Vec<OsString>) -> Result<Vec<OsString>, String> {
    let mut arguments = arguments.into_iter();
    let mut result: Vec<OsString> = arguments.next().into_iter().chain(["mount".into()]).collect();
    let mut is_source = true;
    while let Some(argument) = arguments.next() {
        match argument.to_str() {
            Some("-o") => {
                let options = arguments.next().unwrap_or_default();
                let options = options.to_string_lossy();
                for each in options.split(',').filter(|option| !option.is_empty()) {
                    result.extend(option(each)?);
                }
            }
            // The type and the namespace are not needed.
            Some("-t" | "-N") => drop(arguments.next()),
            Some("-n" | "-r" | "-s" | "-v" | "-w") => {}
            // mount(8) uses the source to check whether a line of fstab is already mounted.
            Some(SOURCE) if is_source => is_source = false,
            _ if is_source => {
                let source = argument.to_string_lossy();
                return Err(format!(
                    "The source to mount is '{SOURCE}', not '{source}': name a configuration with the option config=FILE"
                ));
            }
            _ => result.push(argument),
        }
    }
    Ok(result)
}

/// Converts an option of fstab into arguments.
fn option(option: &str) -> Result<Vec<OsString>, String> {
    let (name, value) = option
        .split_once('=')
        .map_or((option, None), |(name, value)| (name, Some(value)));
    let for_others = ["x-", "X-"].iter().any(|prefix| name.starts_with(prefix));
    if MEANT_FOR_OTHERS.contains(&option) || for_others || name == "comment" {
        return Ok(Vec::new());
    }
    let flag = format!("--{}", name.replace('_', "-"));
    match value {
        Some("") if VALUES.contains(&name) => {
            Err(format!("The option '{name}' has no value: write {name}=VALUE"))
        }
        Some(value) if VALUES.contains(&name) => Ok(vec![flag.into(), value.into()]),
        None if VALUES.contains(&name) => {
            Err(format!("The option '{name}' needs a value: write {name}=VALUE"))
        }
        None if FLAGS.contains(&name) => Ok(vec![flag.into()]),
        Some(_) if FLAGS.contains(&name) => Err(format!("The option '{name}' takes no value: write {name}")),
        _ => Err(unknown(name)),
    }
}

/// Names the option as it is in fstab, and suggests similar ones.
fn unknown(name: &str) -> String {
    let known = || FLAGS.iter().chain(VALUES);
    let spelled = name.to_ascii_lowercase().replace('-', "_");
    let near: Vec<String> = known()
        .chain(MEANT_FOR_OTHERS)
        .filter(|known| strsim::damerau_levenshtein(&spelled, known) <= TYPOS)
        .map(|known| format!("'{known}'"))
        .collect();
    let advice = match near.is_empty() {
        false => format!("did you mean {}?", near.join(" or ")),
        true => {
            let known: Vec<&str> = known().copied().collect();
            format!("known are {}", known.join(", "))
        }
    };
    format!(
        "Unknown option '{}' among the options to mount with (the fourth field in /etc/fstab): {advice}",
        name.escape_debug()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn translated(line: &str) -> String {
        let words = translate(line.split(' ').map(OsString::from).collect()).unwrap();
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
                "/sbin/mount.fuse.barmanfs barmanfs /mnt/b -v -o rw,nofail,x-systemd.automount,config=/etc/b.conf,allow_other,uid=postgres,cache_size=1G -t fuse.barmanfs"
            ),
            "/sbin/mount.fuse.barmanfs mount /mnt/b --config /etc/b.conf --allow-other --uid postgres --cache-size 1G"
        );
    }

    #[test]
    fn another_source_is_refused() {
        let words = ["mount.barmanfs", "/etc/b.conf", "/mnt/b"]
            .map(OsString::from)
            .to_vec();
        assert!(translate(words).unwrap_err().contains("config=FILE"));
    }

    #[test]
    fn an_unknown_option_is_named_with_the_likely_one() {
        let wrong = |option: &str| {
            let line = format!("mount.barmanfs barmanfs /m -o ro,{option}");
            translate(line.split(' ').map(OsString::from).collect()).unwrap_err()
        };
        for (option, says) in [
            ("alow_other", "'alow_other'"),
            ("alow_other", "did you mean 'allow_other'?"),
            ("allow-other", "did you mean 'allow_other'?"),
            ("cachesize=1G", "'cache_size'"),
            ("nofial", "'nofail'"),
            ("speed=9", "known are allow_other, server, uid"),
            ("uid", "uid=VALUE"),
            ("gid=", "gid=VALUE"),
            ("allow_other=yes", "takes no value"),
        ] {
            let said = wrong(option);
            assert!(said.contains(says), "{option}: {said}");
            assert!(!said.contains("--"), "{said}");
        }
    }
}
