//! Where log lines go: standard error, the configured file, or syslog.
//!
//! A mount in the background has no standard error any more: it switches to `log_file`, or to syslog.

use std::fs::File;
use std::io::{self, IsTerminal, Write};
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use crate::output;
use crate::progress;

/// Where a line goes.
#[derive(Debug)]
enum Sink {
    Stderr,
    File(File),
    Syslog(UnixDatagram),
    /// Nobody listens.
    Nowhere,
}

static SINK: Mutex<Sink> = Mutex::new(Sink::Stderr);

/// Starts logging to standard error. Called once.
pub(crate) fn start(level: LevelFilter) {
    let stderr = io::stderr();
    let lines = tracing_subscriber::fmt::layer()
        .with_target(level >= LevelFilter::DEBUG)
        .with_ansi(output::colours(&stderr))
        .with_writer(Lines);
    // What fuser tells of every request is for those who ask for everything.
    let others = if level < LevelFilter::TRACE {
        level.min(LevelFilter::WARN)
    } else {
        level
    };
    let filter = Targets::new().with_default(level).with_target("fuser", others);
    let log = tracing_subscriber::registry().with(filter);
    // Whoever reads a terminal knows what time it is; a log file does not.
    if stderr.is_terminal() {
        log.with(lines.without_time()).init();
    } else {
        log.with(lines).init();
    }
}

/// Sends all further lines to `file`, or to syslog.
pub(crate) fn leave_stderr(file: Option<&Path>) -> io::Result<()> {
    let sink = match file {
        Some(file) => Sink::File(File::options().append(true).create(true).open(file)?),
        None => syslog().map_or(Sink::Nowhere, Sink::Syslog),
    };
    *SINK.lock().unwrap_or_else(PoisonError::into_inner) = sink;
    Ok(())
}

fn syslog() -> io::Result<UnixDatagram> {
    let socket = UnixDatagram::unbound()?;
    socket.connect("/dev/log")?;
    Ok(socket)
}

/// Hands out [`Line`]s.
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

/// One event; the subscriber writes it with one call.
#[derive(Debug)]
struct Line {
    severity: Severity,
}

impl Write for Line {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        // "daemon" of RFC 5424, 6.2.1.
        const FACILITY: u8 = 3;
        match &mut *SINK.lock().unwrap_or_else(PoisonError::into_inner) {
            Sink::Stderr => progress::write_stderr(bytes)?,
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
