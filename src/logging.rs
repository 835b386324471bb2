//! The destinations of log lines: standard error, and the configured file.
//!
//! Every command writes to `log_file`, if there is one, also the error that it ends with: monitoring reads it. A mount in the
//! background has no standard error any more; without a file it switches to syslog. Syslog and
//! systemd's journal keep time and severity of every line themselves, so lines for them do not begin with these.

mod file;
mod keeper;

use std::fmt;
use std::fs::File;
use std::io::{self, IsTerminal, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use tracing::field::Field;
use tracing::level_filters::LevelFilter;
use tracing::{Event, Subscriber};
use tracing_subscriber::field::MakeExt;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::fmt::format::{Format, FormatEvent, FormatFields, Full, Writer, debug_fn};
use tracing_subscriber::fmt::{FmtContext, MakeWriter};
use tracing_subscriber::layer::{Layer, SubscriberExt};
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt;

use crate::output;
use crate::progress;
pub(crate) use file::LogFile;
pub(crate) use keeper::take_kept;

use barmanfs_store::sync::lock;

/// The destination of a line.
#[derive(Debug)]
enum Sink {
    Stderr,
    /// Standard error, which systemd's journal reads.
    Journal,
    File(File),
    Syslog(UnixDatagram),
    /// Nothing is logged.
    Nowhere,
}

static SINK: Mutex<Sink> = Mutex::new(Sink::Stderr);

/// The target of lines that standard error has already, in another form.
const FILE_ONLY: &str = "barmanfs::end";

/// What clients of object stores log may have headers of requests in it, and so signatures: only their warnings are shown.
const CLIENTS: [&str; 6] = ["h2", "hyper", "hyper_util", "object_store", "reqwest", "rustls"];

/// Whether the lines go into a file, too.
static HAS_FILE: AtomicBool = AtomicBool::new(false);

/// Starts logging to standard error and to a file, with a level for each. Called once. With `keep`, warnings are also kept for
/// [`take_kept`].
pub(crate) fn start(level: LevelFilter, file: Option<(LogFile, LevelFilter)>, keep: bool) {
    let stderr = io::stderr();
    if is_the_journals(&stderr) {
        set(Sink::Journal);
    }
    let format = Format::default().with_target(level >= LevelFilter::DEBUG);
    let lines = tracing_subscriber::fmt::layer()
        // Otherwise a line that cannot be written is reported on standard error, with a panic if that is closed.
        .log_internal_errors(false)
        .with_ansi(output::colours(&stderr))
        .fmt_fields(debug_fn(write_field).delimited(" "))
        .with_writer(Lines)
        .event_format(ForItsSink {
            severity_elsewhere: format.clone().with_level(false).without_time(),
            // A log file needs times; a person at a terminal does not.
            on_a_terminal: format.clone().without_time(),
            full: format,
            terminal: stderr.is_terminal(),
        });
    // fuser logs every request. These lines are shown only at the level trace.
    let others = if level < LevelFilter::TRACE {
        level.min(LevelFilter::WARN)
    } else {
        level
    };
    let filter = targets(level)
        .with_target("fuser", others)
        .with_target(FILE_ONLY, LevelFilter::OFF);
    HAS_FILE.store(file.is_some(), Ordering::Relaxed);
    let to_file = file.map(|(file, level)| {
        let filter = targets(level).with_target("fuser", level.min(LevelFilter::WARN));
        tracing_subscriber::fmt::layer()
            .log_internal_errors(false)
            .with_ansi(false)
            .with_target(false)
            .fmt_fields(debug_fn(write_field).delimited(" "))
            .with_writer(Mutex::new(file))
            .with_filter(filter)
    });
    tracing_subscriber::registry()
        .with(lines.with_filter(filter))
        .with(to_file)
        .with(keep.then(|| keeper::Keeper.with_filter(level)))
        .init();
}

fn targets(level: LevelFilter) -> Targets {
    let clients = CLIENTS.map(|client| (client, level.min(LevelFilter::WARN)));
    Targets::new().with_default(level).with_targets(clients)
}

/// Logs the error that the command ends with, which is printed on standard error.
pub(crate) fn ended(error: &str) {
    tracing::error!(target: FILE_ONLY, "{error}");
}

/// Whether this stream is the one that systemd has connected to its journal (systemd.exec(5), `JOURNAL_STREAM`).
fn is_the_journals(stream: &impl AsFd) -> bool {
    let Some(journal) = std::env::var_os("JOURNAL_STREAM") else {
        return false;
    };
    let Ok(file) = stream.as_fd().try_clone_to_owned().map(File::from) else {
        return false;
    };
    file.metadata()
        .is_ok_and(|of| journal.to_string_lossy() == format!("{}:{}", of.dev(), of.ino()))
}

fn set(sink: Sink) {
    *lock(&SINK) = sink;
}

/// Formats a line for its destination.
#[derive(Debug)]
struct ForItsSink {
    full: Format<Full>,
    on_a_terminal: Format<Full, ()>,
    severity_elsewhere: Format<Full, ()>,
    terminal: bool,
}

impl<S, N> FormatEvent<S, N> for ForItsSink
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(&self, ctx: &FmtContext<'_, S, N>, writer: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        let (elsewhere, stderr) = match &*lock(&SINK) {
            Sink::Journal | Sink::Syslog(_) => (true, false),
            Sink::Stderr => (false, true),
            Sink::File(_) | Sink::Nowhere => (false, false),
        };
        match elsewhere {
            true => self.severity_elsewhere.format_event(ctx, writer, event),
            false if stderr && self.terminal => self.on_a_terminal.format_event(ctx, writer, event),
            false => self.full.format_event(ctx, writer, event),
        }
    }
}

/// Messages contain text from servers and file names. One event must be one line, without anything that a terminal acts
/// on.
fn write_field(writer: &mut Writer<'_>, field: &Field, value: &dyn fmt::Debug) -> fmt::Result {
    let text = output::printable(format!("{value:?}").as_bytes());
    match field.name() {
        "message" => writer.write_str(&text),
        name => write!(writer, "{name}={text}"),
    }
}

/// Leaves standard error: all further lines go to `file` alone, or to syslog.
pub(crate) fn leave_stderr(file: Option<&Path>) -> io::Result<()> {
    let sink = match file {
        Some(_) if HAS_FILE.load(Ordering::Relaxed) => Sink::Nowhere,
        Some(file) => Sink::File(File::options().append(true).create(true).open(file)?),
        None => syslog().map_or(Sink::Nowhere, Sink::Syslog),
    };
    set(sink);
    Ok(())
}

fn syslog() -> io::Result<UnixDatagram> {
    let socket = UnixDatagram::unbound()?;
    socket.connect("/dev/log")?;
    Ok(socket)
}

/// Makes [`Line`]s.
#[derive(Debug, Clone, Copy)]
struct Lines;

impl<'a> MakeWriter<'a> for Lines {
    type Writer = Line;

    fn make_writer(&'a self) -> Line {
        Line {
            severity: Severity::Info,
        }
    }

    fn make_writer_for(&'a self, meta: &tracing::Metadata<'_>) -> Line {
        let severity = match *meta.level() {
            tracing::Level::ERROR => Severity::Error,
            tracing::Level::WARN => Severity::Warning,
            _ => Severity::Info,
        };
        Line { severity }
    }
}

/// Syslog's severities (RFC 5424, 6.2.1).
#[derive(Debug, Clone, Copy)]
enum Severity {
    Error = 3,
    Warning = 4,
    Info = 6,
}

/// Every line with its severity in front, in the format of sd-daemon(3).
fn for_the_journal(bytes: &[u8], severity: Severity) -> Vec<u8> {
    let prefix = format!("<{}>", severity as u8);
    let lines = bytes.split_inclusive(|&byte| byte == b'\n');
    lines
        .flat_map(|line| [prefix.as_bytes(), line].concat())
        .collect()
}

/// One event; the subscriber writes it with one call.
#[derive(Debug)]
struct Line {
    severity: Severity,
}

impl Write for Line {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        // "daemon" of RFC 5424, 6.2.1.
        const FACILITY: u8 = 3;
        match &mut *lock(&SINK) {
            Sink::Stderr => progress::write_stderr(bytes)?,
            Sink::Journal => progress::write_stderr(&for_the_journal(bytes, self.severity))?,
            Sink::File(file) => file.write_all(bytes)?,
            Sink::Syslog(socket) => {
                let text = String::from_utf8_lossy(bytes);
                let priority = FACILITY * 8 + self.severity as u8;
                socket.send(
                    format!(
                        "<{priority}>barmanfs[{}]: {}",
                        std::process::id(),
                        text.trim_end()
                    )
                    .as_bytes(),
                )?;
            }
            Sink::Nowhere => {}
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_line_in_the_journal_has_its_severity() {
        let text = for_the_journal(b"first\nsecond\n", Severity::Warning);
        assert_eq!(text, b"<4>first\n<4>second\n");
    }
}
