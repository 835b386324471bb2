//! Progress of long work: a bar on a terminal, otherwise a log line now and then.

use std::io::{self, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

use barmanfs_catalog::{Monitor, Unit};
use barmanfs_store::sync::lock;
use barmanfs_store::threads;
use indicatif::{HumanBytes, HumanDuration, ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::locale::Drawing;

/// How often work without a terminal reports.
const LOG_EVERY: Duration = Duration::from_secs(30);
/// Redraw interval of a bar, so that the time moves while nothing else does.
const TICK: Duration = Duration::from_millis(250);

/// The bar on the terminal, if there is one. Log lines must not break it.
static ON_SCREEN: Mutex<Option<ProgressBar>> = Mutex::new(None);

fn on_screen() -> MutexGuard<'static, Option<ProgressBar>> {
    lock(&ON_SCREEN)
}

/// Whether several pieces of work run at the same time, for which there is one bar only.
static IN_LINES: AtomicBool = AtomicBool::new(false);

/// From now on, work shows itself in lines of the log, as it does without a terminal.
pub(crate) fn use_lines() {
    IN_LINES.store(true, Ordering::Relaxed);
}

/// Writes to standard error, above the bar when there is one.
pub(crate) fn write_stderr(bytes: &[u8]) -> io::Result<()> {
    match on_screen().as_ref() {
        Some(bar) => bar.suspend(|| io::stderr().write_all(bytes)),
        None => io::stderr().write_all(bytes),
    }
}

/// What is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Counted {
    /// Bytes, with a rate per second.
    Bytes,
    /// Chunks, packs or files: plain numbers.
    Things,
    /// Only the elapsed time.
    Time,
}

/// What another process is told.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Step<'a> {
    /// So much is done.
    Done(u64),
    /// A new stage.
    Stage(&'a str),
}

/// Receives the steps.
pub(crate) struct Tell(pub(crate) Box<dyn Fn(Step<'_>) + Send + Sync>);

impl std::fmt::Debug for Tell {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Tell")
    }
}

/// Moves the bar's sign of life until it ends. That of indicatif panics where no thread can be had.
fn tick(bar: &ProgressBar) {
    let bar = bar.downgrade();
    let ticking = move || {
        while let Some(bar) = bar.upgrade().filter(|bar| !bar.is_finished()) {
            bar.tick();
            std::thread::sleep(TICK);
        }
    };
    // Without it, the bar moves with the work.
    let _may_be_refused = threads::start("tick", ticking);
}

/// One long piece of work. Shared by reference: `set` may be called from any thread.
#[derive(Debug)]
pub(crate) struct Progress {
    what: String,
    counted: Counted,
    bar: ProgressBar,
    started: Instant,
    log: Option<Mutex<Instant>>,
    tell: Option<Tell>,
}

impl Progress {
    /// Begins. With `quiet`, nothing is shown.
    pub(crate) fn start(what: impl Into<String>, counted: Counted, quiet: bool) -> Self {
        let what = what.into();
        let target = ProgressDrawTarget::stderr();
        let terminal = !quiet && !target.is_hidden() && !IN_LINES.load(Ordering::Relaxed);
        let bar = if terminal {
            ProgressBar::with_draw_target(None, target)
        } else {
            ProgressBar::hidden()
        };
        if terminal {
            bar.set_style(style(counted, false));
            bar.set_message(what.clone());
            tick(&bar);
            *on_screen() = Some(bar.clone());
        }
        let log = (!quiet && !terminal).then(|| Mutex::new(Instant::now()));
        Self {
            what,
            counted,
            bar,
            started: Instant::now(),
            log,
            tell: None,
        }
    }

    /// Begins. Nothing is shown: another process is told.
    pub(crate) fn told(tell: Tell) -> Self {
        let mut progress = Self::start("", Counted::Bytes, true);
        progress.tell = Some(tell);
        progress
    }

    /// Sets `done` of `total`, if the total is known.
    pub(crate) fn set(&self, done: u64, total: Option<u64>) {
        if self.bar.length() != total {
            self.bar.set_style(style(self.counted, total.is_some()));
            match total {
                Some(total) => self.bar.set_length(total),
                None => self.bar.unset_length(),
            }
        }
        self.bar.set_position(done);
        if let Some(tell) = &self.tell {
            tell.0(Step::Done(done));
        }
        if let Some(log) = &self.log {
            let mut last = lock(log);
            if last.elapsed() >= LOG_EVERY {
                *last = Instant::now();
                tracing::info!("{}: {}", self.what, self.sentence(done, total));
            }
        }
    }

    /// Shows the current action beside the bar; nothing if the text is empty.
    pub(crate) fn note(&self, text: &str) {
        let message = if text.is_empty() {
            self.what.clone()
        } else {
            format!("{}: {}", self.what, crate::output::printable(text.as_bytes()))
        };
        self.bar.set_message(message);
    }

    /// Shows a new stage: beside the bar, or otherwise as a line in the log.
    pub(crate) fn stage(&self, text: &str) {
        self.note(text);
        if let Some(tell) = &self.tell {
            tell.0(Step::Stage(text));
        }
        if self.log.is_some() {
            tracing::info!("{}: {text}", self.what);
        }
    }

    fn sentence(&self, done: u64, total: Option<u64>) -> String {
        let amount = |n: u64| match self.counted {
            Counted::Bytes => HumanBytes(n).to_string(),
            Counted::Things | Counted::Time => n.to_string(),
        };
        let elapsed = self.started.elapsed();
        let per_second = done
            .saturating_mul(1000)
            .checked_div(elapsed.as_millis().try_into().unwrap_or(u64::MAX));
        let rate = amount(per_second.unwrap_or_default());
        let Some(total) = total.filter(|total| *total > 0) else {
            return format!("{} so far, {rate}/s", amount(done));
        };
        let left = total
            .saturating_sub(done)
            .checked_div(per_second.unwrap_or_default());
        let left = left.map_or_else(String::new, |s| {
            format!(", about {} left", HumanDuration(Duration::from_secs(s)))
        });
        let percent = done.min(total).saturating_mul(100) / total;
        format!(
            "{percent} %, {} of {}, {rate}/s{left}",
            amount(done),
            amount(total)
        )
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
        *on_screen() = None;
    }
}

/// Shows the progress of a long operation of the catalog: one [`Progress`] for each of its stages.
#[derive(Debug)]
pub(crate) struct Shown {
    what: &'static str,
    quiet: bool,
    stage: String,
    current: Option<(Unit, Progress)>,
}

impl Shown {
    /// `what` is the operation's name.
    pub(crate) fn start(what: &'static str, quiet: bool) -> Self {
        Self {
            what,
            quiet,
            stage: String::new(),
            current: None,
        }
    }
}

impl Monitor for Shown {
    fn stage(&mut self, what: &str) {
        what.clone_into(&mut self.stage);
        self.current = None;
        tracing::debug!("{}: {what}", self.what);
    }

    fn progress(&mut self, done: u64, total: Option<u64>, unit: Unit) {
        if self.current.as_ref().is_none_or(|(current, _)| *current != unit) {
            let counted = if unit == Unit::Bytes {
                Counted::Bytes
            } else {
                Counted::Things
            };
            // The old bar must be removed before the next one appears.
            self.current = None;
            self.current = Some((unit, Progress::start(self.stage.clone(), counted, self.quiet)));
        }
        if let Some((_, progress)) = &self.current {
            progress.set(done, total);
        }
    }
}

fn template(counted: Counted, total_known: bool) -> &'static str {
    match (counted, total_known) {
        (Counted::Bytes, true) => {
            "{msg}  [{bar:25}] {percent:>3} %  {bytes} of {total_bytes}  {bytes_per_sec}  {eta} left"
        }
        (Counted::Bytes, false) => "{spinner} {msg}  {bytes}  {bytes_per_sec}  {elapsed}",
        (Counted::Things, true) => "{msg}  [{bar:25}] {percent:>3} %  {human_pos} of {human_len}  {eta} left",
        (Counted::Things, false) => "{spinner} {msg}  {human_pos}  {elapsed}",
        (Counted::Time, _) => "{spinner} {msg}  {elapsed}",
    }
}

fn style(counted: Counted, total_known: bool) -> ProgressStyle {
    ProgressStyle::with_template(template(counted, total_known)).map_or_else(
        |_| ProgressStyle::default_bar(),
        |style| {
            let style = style.progress_chars("=> ");
            match Drawing::here() {
                Drawing::Unicode => style,
                Drawing::Ascii => style.tick_chars(r"|/-\ "),
            }
        },
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_template_is_valid() {
        for counted in [Counted::Bytes, Counted::Things, Counted::Time] {
            for total_known in [false, true] {
                assert!(ProgressStyle::with_template(template(counted, total_known)).is_ok());
            }
        }
    }

    #[test]
    fn a_log_line_says_how_much_and_how_long() {
        let mut progress = Progress::start("Backup of main", Counted::Bytes, true);
        progress.started = Instant::now().checked_sub(Duration::from_secs(10)).unwrap();
        let line = progress.sentence(100 << 20, Some(400 << 20));
        assert!(line.starts_with("25 %, 100.00 MiB of 400.00 MiB, "), "{line}");
        assert!(
            line.ends_with("/s, about 30 seconds left") || line.ends_with("/s, about 31 seconds left"),
            "{line}"
        );
        assert!(progress.sentence(5 << 20, None).starts_with("5.00 MiB so far, "));
    }
}
