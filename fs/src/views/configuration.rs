//! The configuration that a startable view adds. With it a copy recovers by itself, to the backup's end or to a
//! target, and cannot touch the original server or its archive.

use std::collections::BTreeSet;
use std::path::Path;

use barmanfs_catalog::{Action, Backup, Plan, Target};
use barmanfs_pg::conf::{ConfLine, quoted};
use barmanfs_pg::pg_control::RequiredSettings;

use super::confinement::{self, Override, TAKEN_OUT};
use super::context::{BARMAN_WAL, CopyOptions};
use super::copy_recovery::Recovery;

mod barman_layout;
mod files;
mod introduction;
mod minimal;

pub(super) use files::{AUTO_CONF, added_directories, files, files_of_a_clone};

/// The first version that has `recovery_init_sync_method`.
const SYNC_METHOD_SINCE: u32 = 14;

/// The settings that name a target of recovery. PostgreSQL takes at most one of them.
pub const TARGETS: [&str; 5] = [
    "recovery_target",
    "recovery_target_time",
    "recovery_target_xid",
    "recovery_target_name",
    "recovery_target_lsn",
];

/// Begins the settings of a view in a configuration file.
pub const BEGIN: &str = "\n# ---- barmanfs: begin ----\n";

/// Ends them.
pub const END: &str = "# ---- barmanfs: end ----\n";

/// Appends the marked block to the text of `postgresql.auto.conf`. The last value of a setting wins, so the server's
/// earlier values stay in the file without effect. Without a `recovery` the copy recovers to the backup's end, or not
/// at all if the backup is of a clone.
fn append_block(
    text: &mut Vec<u8>,
    backup: &Backup,
    recovery: Option<&Recovery>,
    overrides: &[Override],
    (mount_point, recovery_file): (&Path, Option<&str>),
) {
    if text.last().is_some_and(|&byte| byte != b'\n') {
        text.push(b'\n');
    }
    let introduction = match recovery {
        Some(recovery) => introduction::of_a_target(recovery, mount_point),
        None if backup.is_of_server() => introduction::of_the_end(backup),
        None => introduction::of_a_clone(backup),
    };
    let mut kept = kept_to_itself(backup, overrides);
    let settings = match recovery_file {
        Some(name) => {
            // Nothing in this file, which is read last, may override what is in the other one.
            let theirs = names_of(&of_the_recovery(backup, recovery));
            *text = without_settings(text, &theirs);
            kept = String::from_utf8_lossy(&without_settings(kept.as_bytes(), &theirs)).into_owned();
            format!("# The settings of the recovery are in {name}: include that file in postgresql.conf.\n")
        }
        None => of_the_recovery(backup, recovery),
    };
    let block = [
        BEGIN.to_owned(),
        introduction,
        kept,
        settings,
        in_place_tablespaces(backup).to_owned(),
        streamed_tablespaces(recovery).to_owned(),
        END.to_owned(),
    ];
    text.extend_from_slice(block.concat().as_bytes());
}

/// Gives the `postgresql.auto.conf` of a data directory that no tree has the settings of a copy that recovers by `plan`. A
/// block that an earlier restore has appended goes.
pub fn append_recovery(
    text: &mut Vec<u8>,
    (plan, action): (Plan, Action),
    copy: &CopyOptions,
    ran_with: RequiredSettings,
) {
    without_block(text);
    let backup = plan.backup.clone();
    let recovery = Recovery::of_disks(plan, action, copy, ran_with);
    append_block(text, &backup, Some(&recovery), &[], (Path::new(""), None));
}

/// The names of the settings in a text.
fn names_of(text: &str) -> BTreeSet<String> {
    let lines = text.lines().map(|line| ConfLine::parse(line.as_bytes()));
    lines
        .filter_map(|line| match line {
            ConfLine::Setting { name, .. } => Some(name),
            ConfLine::Blank | ConfLine::Malformed => None,
        })
        .collect()
}

/// The text with the lines of these settings as comments.
fn without_settings(text: &[u8], names: &BTreeSet<String>) -> Vec<u8> {
    let mut left = Vec::with_capacity(text.len());
    for line in text.split_inclusive(|byte| *byte == b'\n') {
        if matches!(ConfLine::parse(line), ConfLine::Setting { name, .. } if names.contains(&name)) {
            left.extend_from_slice(TAKEN_OUT);
        }
        left.extend_from_slice(line);
    }
    left
}

/// The settings of the copy's recovery; none for a backup of a clone.
fn of_the_recovery(backup: &Backup, recovery: Option<&Recovery>) -> String {
    match backup.is_of_server() {
        true => settings(backup, recovery) + &recovery.map(Recovery::required_settings).unwrap_or_default(),
        false => String::new(),
    }
}

/// The end of a clone's `postgresql.conf`. Without it, a starting server would open and sync every file twice before
/// recovery. The mount makes all writes durable at that moment, see [`crate::clones`].
fn block_of_a_clone(backup: &Backup, overrides: &[Override]) -> Vec<u8> {
    let sync = match backup.server_version.major() >= SYNC_METHOD_SINCE {
        true => "recovery_init_sync_method = 'syncfs'\n",
        false => "",
    };
    let block = [
        BEGIN,
        "# What keeps this clone to itself also when ALTER SYSTEM RESET ALL has emptied\n\
         # postgresql.auto.conf. When it takes over production, remove this block, too.\n",
        &kept_to_itself(backup, overrides),
        "restore_command = 'false'\n",
        sync,
        in_place_tablespaces(backup),
        END,
    ];
    block.concat().into_bytes()
}

/// Whether the copy replays all the WAL in it. The backup's end cannot be a target for PostgreSQL then: the WAL of a
/// backup from a standby, or of a server that was shut down, may end exactly there, and a target is only reached by a later
/// record.
fn replays_its_wal(backup: &Backup, recovery: Option<&Recovery>) -> bool {
    let to_its_end = |recovery: &Recovery| {
        backup.wal_included
            && recovery.plan.spec.target == Target::Immediate
            && recovery.action == Action::Promote
    };
    backup.own_wal_may_end_with_it() && recovery.is_none_or(to_its_end)
}

/// Removes a clone's block from the end of a text.
fn without_block(text: &mut Vec<u8>) {
    let begin = text
        .windows(BEGIN.len())
        .rposition(|window| window == BEGIN.as_bytes());
    if let Some(begin) = begin
        && text.ends_with(END.as_bytes())
    {
        text.truncate(begin);
    }
}

/// Settings that apply whatever the server's own files say.
fn kept_to_itself(backup: &Backup, overrides: &[Override]) -> String {
    let mut text = String::new();
    for (name, value) in confinement::kept_to_itself(backup.server_version.major()) {
        let is_word = !value.is_empty() && value.bytes().all(|byte| byte.is_ascii_alphanumeric());
        let value = if is_word { value.to_owned() } else { quoted(value) };
        text.push_str(&format!("{name} = {value}\n"));
    }
    let mut said = "";
    for Override { name, value, why } in overrides {
        if *why != said {
            text.push_str(&format!("# {why}.\n"));
            said = why;
        }
        text.push_str(&format!("{name} = {}\n", quoted(value)));
    }
    text
}

fn settings(backup: &Backup, recovery: Option<&Recovery>) -> String {
    let immediate = || Some(("recovery_target", quoted("immediate")));
    let mut target = recovery.map_or_else(immediate, Recovery::target_setting);
    let mut command = recovery.and_then(|recovery| recovery.restore_command.as_deref());
    if replays_its_wal(backup, recovery) {
        (target, command) = (None, None);
    }
    let timeline = match recovery {
        Some(recovery) if !recovery.follows_all_timelines() => recovery.plan.timeline.to_string(),
        _ => "latest".to_owned(),
    };
    let inclusive = recovery.is_none_or(|recovery| recovery.plan.spec.inclusive);
    let mut lines = vec![
        format!("restore_command = {}", quoted(command.unwrap_or("false"))),
        "# What an earlier recovery may have left: of two targets set at once, even to".to_owned(),
        "# nothing, the later is refused, so these come first.".to_owned(),
    ];
    let unused = TARGETS
        .into_iter()
        .filter(|name| target.as_ref().is_none_or(|(used, _)| used != name));
    lines.extend(unused.map(|name| format!("{name} = ''")));
    lines.extend(target.iter().map(|(name, value)| format!("{name} = {value}")));
    lines.extend([
        format!(
            "recovery_target_inclusive = {}",
            if inclusive { "on" } else { "off" }
        ),
        format!(
            "recovery_target_action = '{}'",
            recovery
                .map_or(Action::Promote, |recovery| recovery.action)
                .as_str()
        ),
        format!("recovery_target_timeline = '{timeline}'"),
        "# Of the original, and not for a copy: waiting before a commit is replayed.".to_owned(),
        "recovery_min_apply_delay = 0".to_owned(),
    ]);
    // A command of the shell, in the data directory.
    let is_apart = recovery.is_some_and(|recovery| recovery.wal_is_apart);
    lines.extend(is_apart.then(|| {
        format!(
            "recovery_end_command = {}",
            quoted(&format!("rm -fr {BARMAN_WAL}"))
        )
    }));
    lines.extend(recovery.map(|recovery| hot_standby(recovery).to_owned()));
    let primary = recovery.and_then(|recovery| recovery.standby.as_ref()?.primary_conninfo.as_deref());
    lines.extend(primary.map(|conninfo| format!("primary_conninfo = {}", quoted(conninfo))));
    lines.join("\n") + "\n"
}

/// A copy of the backup alone is consistent at once and can be read then: it has the sizes that the server ran with.
/// On the way to a target PostgreSQL replays what happened to the server since. As a hot standby it stops where a
/// setting was raised that a standby must match (`CheckRequiredParameterValues`), and fails where a prepared
/// transaction was open at a change of timeline (it looks for the transaction's data in a segment of the old one).
fn hot_standby(recovery: &Recovery) -> &'static str {
    if recovery.standby.is_some() {
        return "# Readable while it follows.\nhot_standby = on";
    }
    if recovery.pauses() {
        return "# Readable while it pauses.\nhot_standby = on";
    }
    "# Not readable until then: what a standby may stumble over, like settings that were\n\
     # raised since the backup, cannot stop the recovery.\n\
     hot_standby = off"
}

/// What is streamed comes from the primary as it is.
fn streamed_tablespaces(recovery: Option<&Recovery>) -> &'static str {
    let streams = |recovery: &Recovery| {
        let standby = recovery.standby.as_ref();
        standby.is_some_and(|standby| standby.primary_conninfo.is_some())
    };
    match recovery.is_some_and(streams) {
        true => {
            "# A tablespace that the primary makes while this standby streams is made at the same location here.\n\
             # If that is the same host, the standby damages the primary: never let both have one location.\n"
        }
        false => "",
    }
}

fn in_place_tablespaces(backup: &Backup) -> &'static str {
    if !backup.server_version.knows_in_place_tablespaces() {
        return "";
    }
    "# Tablespaces are plain directories under pg_tblspc, also those that WAL of the archive makes.\n\
     # Remove this line only once they are symbolic links again.\n\
     allow_in_place_tablespaces = on\n"
}
