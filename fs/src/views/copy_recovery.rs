//! The recovery of a copy for a point in time, and the identity of such copies.

use std::sync::Arc;

use barmanfs_catalog::{Action, Plan, Target, TimelineChoice};
use barmanfs_pg::TimestampMicros;
use barmanfs_pg::conf::quoted;
use barmanfs_pg::pg_control::{ControlFile, RequiredSettings};
use barmanfs_store::Node;

use super::context::{BARMAN_WAL, Context, CopyOptions, StandbyOptions};
use super::generated;
use super::restore::{self, Reading};
use crate::entry::Body;

/// The recovery of a copy to a target.
#[derive(Debug)]
pub(super) struct Recovery {
    pub(super) plan: Plan,
    pub(super) action: Action,
    /// The command that fetches WAL; none if the copy holds all its WAL.
    pub(super) restore_command: Option<String>,
    /// Whether that is a directory of the copy, as in a restore by Barman.
    pub(super) wal_is_apart: bool,
    /// Whether that command reads from the mount.
    pub(super) reads_the_mount: bool,
    /// The settings of a standby, if the copy becomes one.
    pub(super) standby: Option<StandbyOptions>,
    /// The largest values of settings the original had on the way, if they changed.
    required: Option<RequiredSettings>,
}

impl Recovery {
    /// The recovery by this plan, on the mount of `context`; `None` if the mount point's path cannot be part of a
    /// command.
    pub(super) fn new(context: &Context, plan: Plan) -> Option<Self> {
        let reading = match plan.spec.target {
            Target::Now => Reading::WithUnfinished,
            _ => Reading::Archive,
        };
        let copy = context.options.copy.as_ref();
        let restore_command = match (plan.spec.self_contained, copy) {
            (true, Some(copy)) if copy.barman_layout.is_some_and(|layout| layout.wal_apart) => {
                Some(format!("cp {BARMAN_WAL}/%f %p"))
            }
            (true, _) => None,
            (false, Some(copy)) => Some(copy.restore_command.clone()),
            (false, None) => {
                let server = &plan.backup.server;
                Some(restore::command(&context.options.mount_point, server, reading)?)
            }
        };
        Some(Self {
            required: required(context, &plan),
            wal_is_apart: plan.spec.self_contained && restore_command.is_some(),
            reads_the_mount: copy.is_none(),
            standby: copy.and_then(|copy| copy.standby.clone()),
            action: plan.spec.action.unwrap_or(context.options.recovery_target_action),
            plan,
            restore_command,
        })
    }

    /// The recovery of a copy whose files no tree has: they are on disks of their own. `ran_with` is what its server ran with.
    pub(super) fn of_disks(
        plan: Plan,
        action: Action,
        copy: &CopyOptions,
        ran_with: RequiredSettings,
    ) -> Self {
        Self {
            required: plan.required.map(|on_the_way| on_the_way.max(ran_with)),
            wal_is_apart: false,
            reads_the_mount: false,
            standby: copy.standby.clone(),
            action: plan.spec.action.unwrap_or(action),
            restore_command: Some(copy.restore_command.clone()),
            plan,
        }
    }

    /// A number that differs for every different copy: the directory under the name changes with it.
    pub(super) fn identity(&self) -> u64 {
        let plan = &self.plan;
        let time = plan.time.map_or(0, TimestampMicros::unix_micros);
        let mut of = format!(
            "{} {} {} {time} {}",
            plan.spec,
            plan.backup.id,
            plan.timeline,
            self.action.as_str()
        );
        if plan.spec.self_contained {
            of.push_str(&plan.last_segment.to_string());
        }
        generated::identity(of.as_bytes())
    }

    /// Whether it goes on to timelines that are not there yet: a standby that follows its primary.
    pub(super) fn follows_all_timelines(&self) -> bool {
        let spec = &self.plan.spec;
        self.standby.is_some() && spec.target == Target::Now && spec.timeline == TimelineChoice::Latest
    }

    /// Whether the copy pauses at the target. At the end of the WAL it is promoted, whatever the action is.
    pub(super) fn pauses(&self) -> bool {
        self.action == Action::Pause && self.plan.spec.target != Target::Now
    }

    /// Whether it can be read before it is promoted.
    pub(super) fn is_hot(&self) -> bool {
        self.pauses() || self.standby.is_some()
    }

    /// Settings for a server that is read while it recovers or pauses: it is a standby, and needs at least what the
    /// original had at any time on the way (`CheckRequiredParameterValues` in
    /// `src/backend/access/transam/xlogrecovery.c`).
    pub(super) fn required_settings(&self) -> String {
        let Some(required) = self.required.filter(|_| self.is_hot()) else {
            return String::new();
        };
        format!(
            "# As large as the original had them on the way.\n\
             max_connections = {}\n\
             max_worker_processes = {}\n\
             max_wal_senders = {}\n\
             max_prepared_transactions = {}\n\
             max_locks_per_transaction = {}\n",
            required.max_connections,
            required.max_worker_processes,
            required.max_wal_senders,
            required.max_prepared_transactions,
            required.max_locks_per_transaction
        )
    }

    /// The setting for PostgreSQL's target and its quoted value; none for the end of the WAL.
    pub(super) fn target_setting(&self) -> Option<(&'static str, String)> {
        let (name, value) = match &self.plan.spec.target {
            Target::Now => return None,
            Target::Immediate => ("recovery_target", "immediate".to_owned()),
            Target::Time(_) => ("recovery_target_time", self.plan.time?.to_string()),
            Target::Lsn(lsn) => ("recovery_target_lsn", lsn.to_string()),
            Target::Xid(xid) => ("recovery_target_xid", xid.to_string()),
            Target::Name(name) => ("recovery_target_name", name.clone()),
        };
        Some((name, quoted(&value)))
    }
}

/// The settings of the original at the backup and on the way to the target. `None` if they did not change: the values
/// in its files apply then.
fn required(context: &Context, plan: &Plan) -> Option<RequiredSettings> {
    const BYTES_MAX: u64 = 1 << 20;
    let on_the_way = plan.required?;
    let trees = &context.trees;
    let root = &plan.backup.root.as_ref()?.directory;
    let map = match trees
        .find(root, b"global/pg_control")
        .ok()?
        .map(|entry| entry.node)
    {
        Some(Node::File(map)) => map,
        _ => return Some(on_the_way),
    };
    let bytes = Body::Stored(Arc::new(map)).read_all(trees, BYTES_MAX).ok()?;
    // PostgreSQL reports best what is wrong with it.
    let control = bytes.and_then(|bytes| ControlFile::parse(&bytes).ok());
    Some(control.map_or(on_the_way, |control| on_the_way.max(control.required_settings)))
}
