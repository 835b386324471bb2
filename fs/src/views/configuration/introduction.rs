//! The comment in the marked block, for the person who opens the file, perhaps in the middle of the night: what this
//! copy is, what it does when it is started, and how it becomes the production server.

use std::path::Path;

use barmanfs_catalog::{Action, Backup, Target};

use super::super::context::BARMAN_WAL;
use super::super::copy_recovery::Recovery;

const ARCHIVES_NOTHING: &str = "\
# It archives nothing, its subscriptions stand still, and it cannot disturb the server it was
# taken from; but jobs of extensions (pg_cron, TimescaleDB) run in it. Only the user it runs
# as can connect, by a socket in its data directory: psql -h DIRECTORY.
# When it takes over production, remove everything from \"begin\" to \"end\", restart it, so
# that it listens as the original did, archives its WAL and its subscriptions go on, and take a backup.
";

pub(super) fn of_the_end(backup: &Backup) -> String {
    let Backup { id, server, .. } = backup;
    format!(
        "# A copy of backup {id} of server {server}. It recovers to the end of the backup, then goes on as a\n\
         # server of its own on a new timeline.\n{ARCHIVES_NOTHING}"
    )
}

/// Earlier lines in the file are the clone's and have no effect: no recovery is requested any more.
pub(super) fn of_a_clone(backup: &Backup) -> String {
    let Backup { id, server, .. } = backup;
    let clone = backup.cloned_from.as_ref();
    let name = clone.map(|clone| format!(" {}", clone.name)).unwrap_or_default();
    let start = match clone {
        Some(clone) if clone.shut_down => "It was shut down cleanly, and starts as it is.",
        _ => "It starts as after a crash, with the WAL in its pg_wal.",
    };
    format!(
        "# A copy of backup {id} of server {server}, which was made of the clone{name}.\n# {start}\n\
         # It archives nothing, its subscriptions stand still, and it cannot disturb the server it\n\
         # comes from; but jobs of extensions (pg_cron, TimescaleDB) run in it. Only the user it runs\n\
         # as can connect, by a socket in its data directory: psql -h DIRECTORY. Its timeline is\n\
         # its own: before it archives, give it an archive of its own (another server's name),\n\
         # remove everything from \"begin\" to \"end\", here and in postgresql.conf, restart it, and\n\
         # take a backup.\n"
    )
}

pub(super) fn of_a_target(recovery: &Recovery, mount_point: &Path) -> String {
    let plan = &recovery.plan;
    let (id, server) = (plan.backup.id, &plan.backup.server);
    let spec = &plan.spec;
    let mut text = format!(
        "# A copy of server {server}, to be recovered to a target.\n\
         #   target    {spec}{}\n\
         #   from      backup {id}\n\
         #   along     timeline {}\n",
        target_in_words(recovery),
        plan.timeline
    );
    text.push_str(&wal_in_words(recovery, mount_point));
    text.push_str(action_in_words(recovery));
    text.push_str(ARCHIVES_NOTHING);
    text
}

/// The meaning of the target, where its own form leaves that open.
fn target_in_words(recovery: &Recovery) -> String {
    let plan = &recovery.plan;
    match (&plan.spec.target, plan.time) {
        (Target::Now, _) => ": all WAL there is".to_owned(),
        (Target::Immediate, _) => ": the end of the backup".to_owned(),
        (Target::Time(_), Some(time)) if plan.spec.inclusive => {
            format!("\n#             (everything that was committed up to {time})")
        }
        (Target::Time(_), Some(time)) => {
            format!("\n#             (everything that was committed before {time})")
        }
        _ => String::new(),
    }
}

fn wal_in_words(recovery: &Recovery, mount_point: &Path) -> String {
    if recovery.restore_command.is_none() {
        return "# Started, it replays the WAL in its pg_wal: all it needs lies there.\n".to_owned();
    }
    if recovery.wal_is_apart {
        return format!(
            "# Started, it replays the WAL in its {BARMAN_WAL}: all it needs lies there. At the end it removes that.\n"
        );
    }
    if !recovery.reads_the_mount {
        return "# Started, it replays WAL that its restore_command fetches from the repository.\n\
                # If that cannot be reached it stops with an error (and is not promoted too early):\n\
                # start it once more when it can.\n"
            .to_owned();
    }
    format!(
        "# Started, it replays WAL that it reads from the mount at {}.\n\
         # If that is gone it stops with an error (and is not promoted too early): mount it\n\
         # again at the same place and start the copy once more.\n",
        mount_point.display()
    )
}

fn action_in_words(recovery: &Recovery) -> &'static str {
    if recovery.standby.is_some() && recovery.plan.spec.target == Target::Now {
        return "# It is a standby: it goes on replaying what is archived, or what its primary sends,\n\
                # until it is promoted. Then it takes writes, on a new timeline.\n";
    }
    match (&recovery.plan.spec.target, recovery.action) {
        (Target::Now, _) | (_, Action::Promote) => {
            "# At the end it is promoted: it takes writes, on a new timeline.\n"
        }
        (_, Action::Pause) => {
            "# At the target it pauses and can be read.\n\
             # SELECT pg_wal_replay_resume() then promotes it. Or set another target and restart it.\n"
        }
        (_, Action::Shutdown) => {
            "# At the target it shuts down. To go on, set recovery_target_action to 'promote', or a\n\
             # later target, and start it again. Do not remove recovery.signal: it would then go on\n\
             # writing to the timeline it was copied from.\n"
        }
    }
}
