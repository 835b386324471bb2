//! `<server>/pitr/`: a directory for every reachable target, generated when it is looked up.
//!
//! The plan for a target decides what a directory holds. It does not change while it is in use, even if a better plan
//! becomes possible (a newer backup for `now`, a new timeline): `cp -a` works with paths and would copy a mixture of
//! both. A target that cannot be reached is absent. The kernel never caches that, and the log gives the reason once.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use barmanfs_catalog::{Backup, ServerName, Target, TargetSpec, TimelineChoice, Unreachable};
use barmanfs_store::sync::lock;

use super::context::Context;
use super::copy_recovery::Recovery;
use super::no_files;
use super::snapshot::ServerState;
use super::tree::{BackupTree, Style};
use crate::entry::{Body, Child, Children, Directory, Lifetime};
use crate::error::Result;

/// Maximum number of cached answers, a few KiB each. The least recently used one is dropped first. More than the
/// number of listed targets, so that the targets of a listing are still planned when they are opened.
const MAX_KNOWN: usize = 1024;

/// Maximum number of restore points listed, newest first: some applications create one every few minutes.
const MAX_POINTS_LISTED: usize = 200;

/// The directory.
#[derive(Debug)]
pub(super) struct Pitr {
    context: Arc<Context>,
    server: ServerName,
}

impl Pitr {
    pub(super) fn new(context: Arc<Context>, server: ServerName) -> Self {
        Self { context, server }
    }

    fn child(&self, name: &str) -> Result<Option<Child>> {
        let (context, server) = (&self.context, &self.server);
        let Some(tree) = context.targets.tree(context, server, name)? else {
            return Ok(None);
        };
        let identity = tree.style.recovery().map_or(0, Recovery::identity);
        Ok(tree.child(name).map(|child| Child { identity, ..child }))
    }

    /// A backup's end as an LSN, with its timeline if the newest timeline has left it.
    fn end_of(&self, backup: &Backup) -> Result<Option<Child>> {
        if !backup.is_of_server() {
            return Ok(None);
        }
        let (Some(stop), Some(timeline)) = (backup.stop_lsn, backup.timeline) else {
            return Ok(None);
        };
        for choice in [TimelineChoice::Latest, TimelineChoice::Id(timeline)] {
            let spec = TargetSpec {
                timeline: choice,
                ..Target::Lsn(stop).into()
            };
            let name = spec.to_string();
            let tree = self.context.targets.tree(&self.context, &self.server, &name)?;
            if tree.is_some_and(|tree| tree.backup.id == backup.id) {
                return self.child(&name);
            }
        }
        Ok(None)
    }
}

impl Directory for Pitr {
    fn lookup(&self, name: &[u8]) -> Result<Option<Child>> {
        match std::str::from_utf8(name) {
            Ok(name) => self.child(name),
            Err(_) => Ok(None),
        }
    }

    /// Nearly any text can be a target. The listing has some that people need.
    fn entries(&self) -> Result<Children> {
        let snapshot = self.context.snapshot()?;
        let Some(server) = snapshot.server(self.server.as_str()).cloned() else {
            return Ok(Box::new(std::iter::empty()));
        };
        let this = Self::new(Arc::clone(&self.context), self.server.clone());
        let points = self
            .context
            .repository
            .restore_point_names(&self.server, MAX_POINTS_LISTED)?;
        let named: Vec<_> = std::iter::once(Target::Now)
            .chain(points.into_iter().map(Target::Name))
            .collect();
        let named = {
            let this = Self::new(Arc::clone(&self.context), self.server.clone());
            named
                .into_iter()
                .filter_map(move |target| this.child(&TargetSpec::from(target).to_string()).transpose())
        };
        let ends = (0..server.backups.len())
            .filter_map(move |place| this.end_of(server.backups.get(place)?).transpose());
        Ok(Box::new(named.chain(ends)))
    }

    fn open(&self, _name: &[u8]) -> Result<Body> {
        no_files()
    }

    fn lifetime(&self) -> Lifetime {
        Lifetime::UntilNotified
    }

    fn is_open_ended(&self) -> bool {
        true
    }
}

/// The meaning of a name.
#[derive(Debug, Clone)]
enum Answer {
    Tree(Arc<BackupTree>),
    Absent(String),
}

#[derive(Debug)]
struct Known {
    server: ServerName,
    /// The name in canonical form, or as it was written if it is not a target.
    target: String,
    /// The repository's generation when it was answered.
    generation: u64,
    answer: Answer,
}

/// Maximum log lines about look-ups: any user may look up any number of targets.
#[derive(Debug, Default)]
struct Lines(Mutex<Option<Minute>>);

#[derive(Debug)]
struct Minute {
    began: Instant,
    logged: u32,
}

impl Lines {
    /// More than a person looks up.
    const MAX_IN_A_MINUTE: u32 = 60;

    /// Whether another line is allowed.
    fn may_have_one(&self) -> bool {
        let mut minute = lock(&self.0);
        let now = match minute.take() {
            Some(minute) if minute.began.elapsed() < Duration::from_secs(60) => minute,
            _ => Minute {
                began: Instant::now(),
                logged: 0,
            },
        };
        let logged = now.logged + 1;
        if logged == Self::MAX_IN_A_MINUTE + 1 {
            tracing::warn!(
                "Many targets are looked up below pitr/: for a minute, nothing more is logged about them"
            );
        }
        *minute = Some(Minute { logged, ..now });
        logged <= Self::MAX_IN_A_MINUTE
    }
}

/// The cache of answers.
#[derive(Debug, Default)]
pub(super) struct Targets {
    known: Mutex<VecDeque<Known>>,
    lines: Lines,
}

impl Targets {
    /// The view of a target; `None` when it cannot be reached.
    pub(super) fn tree(
        &self,
        context: &Arc<Context>,
        server: &ServerName,
        text: &str,
    ) -> Result<Option<Arc<BackupTree>>> {
        // Programs look for files of their own; that is not logged.
        if text.starts_with('.') {
            return Ok(None);
        }
        let spec = text.parse::<TargetSpec>();
        let target = spec
            .as_ref()
            .map_or_else(|_| text.to_owned(), ToString::to_string);
        // Read before planning: a later change makes the next look-up plan again.
        let generation = context.repository.generation()?;
        let before = self.last(server, &target);
        match &before {
            Some((of, answer)) if *of == generation => return Ok(answer.tree()),
            Some((_, Answer::Tree(tree))) if tree.usage.is_busy() && is_shown(context, tree)? => {
                return Ok(Some(Arc::clone(tree)));
            }
            _ => {}
        }
        let answer = match spec {
            Ok(spec) => planned(context, server, &spec)?,
            Err(error) => Answer::Absent(error.to_string()),
        };
        // The command that writes the tree says what it does.
        let tell = || context.options.copy.is_none() && self.lines.may_have_one();
        let answer = answer.after(before.as_ref().map(|(_, answer)| answer), server, text, tell);
        self.remember(Known {
            server: server.clone(),
            target,
            generation,
            answer: answer.clone(),
        });
        Ok(answer.tree())
    }

    fn last(&self, server: &ServerName, target: &str) -> Option<(u64, Answer)> {
        let mut known = self.lock();
        let place = known
            .iter()
            .position(|known| known.target == target && known.server == *server)?;
        let found = known.remove(place)?;
        let answer = (found.generation, found.answer.clone());
        known.push_front(found);
        Some(answer)
    }

    fn remember(&self, new: Known) {
        let mut known = self.lock();
        known.retain(|known| known.target != new.target || known.server != new.server);
        known.truncate(MAX_KNOWN - 1);
        known.push_front(new);
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<Known>> {
        lock(&self.known)
    }
}

impl Answer {
    fn tree(&self) -> Option<Arc<BackupTree>> {
        match self {
            Self::Tree(tree) => Some(Arc::clone(tree)),
            Self::Absent(_) => None,
        }
    }

    /// This answer, or an earlier one with the same content. A new answer is logged.
    fn after(
        self,
        before: Option<&Self>,
        server: &ServerName,
        text: &str,
        may_tell: impl Fn() -> bool,
    ) -> Self {
        match (&self, before) {
            (Self::Tree(now), Some(Self::Tree(before)))
                if now.style.recovery().map(Recovery::identity)
                    == before.style.recovery().map(Recovery::identity) =>
            {
                return Self::Tree(Arc::clone(before));
            }
            (Self::Absent(now), Some(Self::Absent(before))) if now == before => {}
            _ if !may_tell() => {}
            (Self::Tree(tree), _) => tell(server, text, tree),
            (Self::Absent(reason), _) => {
                tracing::info!("There is no {server}/pitr/{}: {reason}", text.escape_debug());
            }
        }
        self
    }
}

fn tell(server: &ServerName, text: &str, tree: &BackupTree) {
    let Some(Recovery { plan, .. }) = tree.style.recovery() else {
        return;
    };
    let notes: String = plan.notes.iter().map(|note| format!(". {note}")).collect();
    tracing::info!(
        "{server}/pitr/{}: {} from backup {} along timeline {}, WAL {} to {}{notes}",
        text.escape_debug(),
        plan.spec,
        plan.backup.id,
        plan.timeline,
        plan.first_segment,
        plan.last_segment
    );
}

fn planned(context: &Arc<Context>, server: &ServerName, spec: &TargetSpec) -> Result<Answer> {
    let spec = &spec.clone().or_action(context.options.recovery_target_action);
    let plan = match context.repository.plan(server, spec)? {
        Ok(plan) => plan,
        Err(reason) => return Ok(Answer::Absent(in_words(context, server, spec, &reason)?)),
    };
    let snapshot = context.snapshot()?;
    let backup = snapshot
        .server(server.as_str())
        .and_then(|server| server.backup(plan.backup.id));
    let Some(backup) = backup.cloned() else {
        return Ok(Answer::Absent(format!("backup {} is not shown", plan.backup.id)));
    };
    let canonical = plan.spec.to_string();
    let Some(recovery) = Recovery::new(context, plan) else {
        let reason = "the path of this mount is too long or has characters that cannot be written in \
                      restore_command: mount elsewhere, or add ,self-contained";
        return Ok(Answer::Absent(reason.to_owned()));
    };
    let style = Style::Target(Arc::new(recovery));
    Ok(Answer::Tree(context.tree(&backup, style, &canonical)))
}

fn in_words(
    context: &Context,
    server: &ServerName,
    spec: &TargetSpec,
    reason: &Unreachable,
) -> Result<String> {
    let along = context.repository.reachable_along(server, spec)?;
    let elsewhere = along
        .last()
        .map(|timeline| format!("it can be reached along timeline {timeline}: add ,timeline={timeline}"));
    let more = [reason.nearest(), elsewhere.or_else(|| reason.hint())];
    let words: Vec<String> = std::iter::once(reason.to_string())
        .chain(more.into_iter().flatten())
        .collect();
    Ok(words.join("; "))
}

fn is_shown(context: &Context, tree: &BackupTree) -> Result<bool> {
    let snapshot = context.snapshot()?;
    let server: Option<&Arc<ServerState>> = snapshot.server(tree.backup.server.as_str());
    Ok(server.is_some_and(|server| server.backup(tree.backup.id).is_some()))
}
