//! How a copy made for a point in time recovers, and which of two such copies are the same.

use barmanfs_catalog::{Action, Plan, Target};
use barmanfs_pg::TimestampMicros;

use super::configuration::quoted;
use super::context::Context;
use super::made;
use super::restore::{self, Reading};

/// See the module.
#[derive(Debug)]
pub(super) struct Recovery {
    pub(super) plan: Plan,
    pub(super) action: Action,
    /// The command that reads the mount; none where the copy holds all WAL itself.
    pub(super) restore_command: Option<String>,
}

impl Recovery {
    /// By this plan, on the mount of `context`; `None` where the mount point's path cannot be written in a command.
    pub(super) fn new(context: &Context, plan: Plan) -> Option<Self> {
        let reading = match plan.spec.target {
            Target::Now => Reading::WithUnfinished,
            _ => Reading::Archive,
        };
        let restore_command = match plan.spec.self_contained {
            true => None,
            false => {
                let server = &plan.backup.server;
                Some(restore::command(&context.options.mount_point, server, reading)?)
            }
        };
        Some(Self {
            action: plan.spec.action.unwrap_or(context.options.recovery_target_action),
            plan,
            restore_command,
        })
    }

    /// Another number for everything that makes another copy: what is under a name changes with it.
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
        made::identity(of.as_bytes())
    }

    /// Whether it waits at the target. The end of the WAL is none: there it is promoted, whatever the action.
    pub(super) fn pauses(&self) -> bool {
        self.action == Action::Pause && self.plan.spec.target != Target::Now
    }

    /// The setting PostgreSQL takes the target from, and its value, quoted; none for the end of the WAL.
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
