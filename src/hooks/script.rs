//! One script: a command line of a shell in a process group of its own, whose output goes to the log.
//!
//! The group ends with the process that waits for the script, however that ends: a process of the group reads from a pipe
//! whose other end that process holds.

use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process_group};

use super::environment::Environment;
use super::{IsStopped, NEVER_STOPPED};
use crate::config::ServerConfig;
use crate::output::printable_lines;

/// A retry script gives up, and the operation goes on.
const GIVE_UP: i32 = 62;

/// A retry script gives up, and the operation is to stop.
const STOP: i32 = 63;

/// The pauses of a retry script: a short one after each of the first failures, then a long one.
const SHORT_PAUSE: Duration = Duration::from_secs(3);
const SHORT_PAUSES: u32 = 5;
const LONG_PAUSE: Duration = Duration::from_secs(60);

/// How often a script that runs, or a pause, is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(5);
const LOOK_AT_PAUSE_EVERY: Duration = Duration::from_millis(100);

/// What a script may take to end by itself when the process that waits for it is to end.
const END_WITHIN: Duration = Duration::from_secs(5);

/// What a script may take that begins after that: it may be the one that tells somebody.
const LAST_WORD_WITHIN: Duration = Duration::from_secs(10);

/// Runs its argument as a script. Beside it, a process waits for a line, which says that the script has ended. If none comes,
/// the process that would write it is gone, and the group is ended.
const SUPERVISED: &str = r#"exec 3<&0 </dev/null
( ( trap '' TERM; read -r _ <&3 || { kill -s TERM -- "-$$"; sleep 5; kill -s KILL -- "-$$"; } ) >/dev/null 2>&1 & )
exec /bin/sh -c "$1" 3<&-"#;

/// As much of the output goes to the log.
const LOGGED_BYTES: u64 = 64 * 1024;

/// The most that a command may answer: names of snapshots.
const ANSWER_BYTES: u64 = 1 << 20;

/// How a retry script ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Ended {
    /// It succeeded.
    Done,
    /// It gave up; the operation goes on.
    GivenUp,
    /// It gave up, and the operation is to stop: why.
    Stop(String),
}

/// A script that is to be run.
#[derive(Debug)]
pub(super) struct Script {
    /// Its key in the configuration.
    pub(super) key: String,
    /// The command line. It may have a secret in it, and is not logged.
    pub(super) command: String,
    pub(super) environment: Environment,
    /// For all attempts together.
    pub(super) timeout: Option<Duration>,
    /// The user and group to run as, where that is not the caller.
    pub(super) owner: Option<(u32, u32)>,
}

/// The user and group that root becomes for a script: a script of the repository's owner must not have root's power.
pub(super) fn owner_to_become(repository: &Path) -> Option<(u32, u32)> {
    if !rustix::process::geteuid().is_root() {
        return None;
    }
    let found = std::fs::metadata(repository).ok()?;
    (found.uid() != 0).then(|| (found.uid(), found.gid()))
}

/// How one attempt ended.
enum Attempt {
    Code(i32),
    TimedOut,
    /// The process that waits for it is to end.
    Stopped,
    Failed(String),
}

/// How long a script is waited for.
#[derive(Clone, Copy)]
struct Patience<'a> {
    until: Option<Instant>,
    is_stopped: IsStopped<'a>,
}

/// How a script ended that has run.
enum Ran {
    Ended(ExitStatus),
    TimedOut,
    Stopped,
}

impl Script {
    /// Runs it once, and ends it when the process that waits for it is to end. What it ends with is logged.
    pub(super) fn run_once(&self, is_stopped: IsStopped<'_>) {
        let until = self.timeout.map(|timeout| Instant::now() + timeout);
        let _logged = self.attempt(Patience { until, is_stopped });
    }

    /// Runs it until it succeeds or gives up, or its time is over, or the process that waits for it is to end.
    pub(super) fn run_until_done(&self, is_stopped: IsStopped<'_>) -> Ended {
        let until = self.timeout.map(|timeout| Instant::now() + timeout);
        let mut failures = 0;
        loop {
            match self.attempt(Patience { until, is_stopped }) {
                Attempt::Code(0) => return Ended::Done,
                Attempt::Code(GIVE_UP) => return Ended::GivenUp,
                Attempt::Code(STOP) => return Ended::Stop(format!("it ended with code {STOP}")),
                Attempt::TimedOut => return Ended::Stop("its time, hook_timeout, is over".to_owned()),
                Attempt::Stopped => return Ended::Stop("barmanfs is to end".to_owned()),
                Attempt::Code(_) | Attempt::Failed(_) => {}
            }
            failures += 1;
            let pause = match failures > SHORT_PAUSES {
                true => {
                    failures = 0;
                    LONG_PAUSE
                }
                false => SHORT_PAUSE,
            };
            let next = Instant::now() + pause;
            while Instant::now() < next {
                if is_stopped() {
                    return Ended::Stop("barmanfs is to end".to_owned());
                }
                if until.is_some_and(|until| until <= Instant::now()) {
                    return Ended::Stop("its time, hook_timeout, is over".to_owned());
                }
                std::thread::sleep(LOOK_AT_PAUSE_EVERY);
            }
        }
    }

    /// Runs it once, and returns what it prints on its standard output. The rest goes to the log.
    ///
    /// # Errors
    /// Why it failed, in words that follow the key.
    pub(super) fn answer(&self, is_stopped: IsStopped<'_>) -> Result<String, String> {
        let until = self.timeout.map(|timeout| Instant::now() + timeout);
        let failed = |error: io::Error| format!("cannot be run: {error}");
        let errors = tempfile::tempfile().map_err(failed)?;
        let ran = self.run(Patience { until, is_stopped }, Some(&errors));
        log(&self.key, &errors);
        let (ran, mut output) = ran.map_err(failed)?;
        let mut text = Vec::new();
        let read = output
            .rewind()
            .and_then(|()| output.take(ANSWER_BYTES + 1).read_to_end(&mut text));
        read.map_err(failed)?;
        match ran {
            Ran::Ended(status) if code(status) == 0 && text.len() as u64 <= ANSWER_BYTES => {
                String::from_utf8(text).map_err(|_| "printed what is no UTF-8".to_owned())
            }
            Ran::Ended(status) if code(status) == 0 => Err(format!("printed more than {ANSWER_BYTES} bytes")),
            Ran::Ended(status) => {
                log_text(&self.key, &text);
                Err(format!("ended with code {}", code(status)))
            }
            Ran::TimedOut => Err("took longer than it may, and was killed".to_owned()),
            Ran::Stopped => Err("was ended with barmanfs".to_owned()),
        }
    }

    fn attempt(&self, patience: Patience<'_>) -> Attempt {
        let attempt = match self.run(patience, None) {
            Ok((ran, output)) => {
                log(&self.key, &output);
                match ran {
                    Ran::Ended(status) => Attempt::Code(code(status)),
                    Ran::TimedOut => Attempt::TimedOut,
                    Ran::Stopped => Attempt::Stopped,
                }
            }
            Err(error) => Attempt::Failed(error.to_string()),
        };
        match &attempt {
            Attempt::Code(0) => tracing::debug!("{} ended with code 0", self.key),
            Attempt::Code(code) => tracing::warn!("{} ended with code {code}", self.key),
            Attempt::TimedOut => {
                tracing::error!("{} took longer than hook_timeout, and was killed", self.key);
            }
            Attempt::Stopped => tracing::error!("{} was ended with barmanfs", self.key),
            Attempt::Failed(error) => tracing::error!("{} cannot be run: {error}", self.key),
        }
        attempt
    }

    /// Runs it to its end, or ends it. Output goes through a file: what the script leaves running must not keep anybody
    /// waiting.
    /// `errors` takes its standard error, if that is to be apart.
    fn run(&self, patience: Patience<'_>, errors: Option<&File>) -> io::Result<(Ran, File)> {
        // Without room for its output it runs all the same.
        let output =
            tempfile::tempfile().or_else(|_| File::options().read(true).write(true).open("/dev/null"))?;
        let mut command = shell(&self.command, (&output, errors.unwrap_or(&output)))?;
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        if let Some((user, group)) = self.owner {
            command.gid(group).uid(user);
        }
        let mut child = command.spawn()?;
        let held = child.stdin.take();
        let ran = wait(&mut child, patience)?;
        if let Some(mut held) = held {
            // Where the group is gone, nobody reads it.
            let _told = held.write_all(b"\n");
        }
        Ok((ran, output))
    }
}

/// A shell that runs a command line, in a process group of its own that ends with this process.
fn shell(line: &str, (output, errors): (&File, &File)) -> io::Result<Command> {
    let mut command = Command::new("/bin/sh");
    command
        .args(["-c", SUPERVISED, "sh", line])
        .current_dir("/")
        .stdin(Stdio::piped())
        .stdout(output.try_clone()?)
        .stderr(errors.try_clone()?)
        .process_group(0);
    Ok(command)
}

fn wait(child: &mut Child, patience: Patience<'_>) -> io::Result<Ran> {
    let began = Instant::now();
    let stops_at = match (patience.is_stopped)() {
        true => began + LAST_WORD_WITHIN,
        false => began,
    };
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Ran::Ended(status));
        }
        if patience.until.is_some_and(|until| until <= Instant::now()) {
            signal_group(child, Signal::KILL);
            child.wait()?;
            return Ok(Ran::TimedOut);
        }
        if (patience.is_stopped)() && stops_at <= Instant::now() {
            end(child)?;
            return Ok(Ran::Stopped);
        }
        let is_short = began.elapsed() < LOOK_AT_PAUSE_EVERY * 10;
        std::thread::sleep(if is_short { LOOK_EVERY } else { LOOK_AT_PAUSE_EVERY });
    }
}

/// Asks a script and what it started to end, and kills what does not.
fn end(child: &mut Child) -> io::Result<()> {
    signal_group(child, Signal::TERM);
    let until = Instant::now() + END_WITHIN;
    while child.try_wait()?.is_none() && Instant::now() < until {
        std::thread::sleep(LOOK_EVERY);
    }
    signal_group(child, Signal::KILL);
    child.wait().map(drop)
}

/// If the group has just ended, there is nothing to signal.
fn signal_group(child: &Child, signal: Signal) {
    if let Some(group) = Pid::from_raw(i32::try_from(child.id()).unwrap_or_default()) {
        let _ended = kill_process_group(group, signal);
    }
}

/// Logs what a script printed, line by line.
fn log(key: &str, mut output: &File) {
    let mut text = Vec::new();
    let read = output
        .rewind()
        .and_then(|()| output.take(LOGGED_BYTES).read_to_end(&mut text));
    if read.is_ok() {
        log_text(key, &text);
    }
}

fn log_text(key: &str, text: &[u8]) {
    for line in printable_lines(&String::from_utf8_lossy(text)).lines() {
        tracing::info!("{key}: {line}");
    }
}

/// The exit code as a shell reports it.
fn code(status: ExitStatus) -> i32 {
    const KILLED_BY: i32 = 128;
    let killed = status.signal().map(|signal| KILLED_BY + signal);
    status.code().or(killed).unwrap_or(KILLED_BY)
}

/// What `notify_command` is told.
#[derive(Debug)]
pub(crate) struct Notice<'a> {
    /// The server.
    pub(crate) server: &'a ServerConfig,
    /// The name of a check.
    pub(crate) check: &'a str,
    /// Its new state.
    pub(crate) state: &'a str,
    /// Why it fails.
    pub(crate) message: &'a str,
}

/// How `notify_command` ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Told {
    /// With 0.
    Done,
    /// With another code, or it could not be run.
    Failed,
    /// It took too long.
    TimedOut,
}

/// Runs `notify_command` for at most this time. What goes wrong is logged, too.
pub(crate) fn notify(line: &str, notice: &Notice<'_>, limit: Duration, repository: &Path) -> Told {
    let variables = [
        ("BARMANFS_VERSION", env!("CARGO_PKG_VERSION").into()),
        ("BARMAN_SERVER", notice.server.name.as_str().into()),
        (
            "BARMAN_CONFIGURATION",
            notice.server.hooks.configuration.clone().into_os_string(),
        ),
        ("BARMANFS_CHECK", notice.check.into()),
        ("BARMANFS_STATE", notice.state.into()),
        ("BARMANFS_MESSAGE", notice.message.into()),
    ];
    let script = Script {
        key: "notify_command".to_owned(),
        command: line.to_owned(),
        environment: variables.map(|(name, value)| (name.into(), value)).into(),
        timeout: Some(limit),
        owner: owner_to_become(repository),
    };
    let patience = Patience {
        until: Some(Instant::now() + limit),
        is_stopped: NEVER_STOPPED,
    };
    match script.attempt(patience) {
        Attempt::Code(0) => Told::Done,
        Attempt::TimedOut => Told::TimedOut,
        Attempt::Code(_) | Attempt::Stopped | Attempt::Failed(_) => Told::Failed,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU32, Ordering};

    fn script(command: &str, timeout: Option<u64>) -> Script {
        Script {
            key: "post_archive_retry_script".to_owned(),
            command: command.to_owned(),
            environment: vec![("BARMAN_PHASE".into(), "post".into())],
            timeout: timeout.map(Duration::from_millis),
            owner: None,
        }
    }

    fn ended(command: &str) -> Ended {
        script(command, None).run_until_done(&|| false)
    }

    #[test]
    fn codes_mean_what_they_mean_in_barman() {
        assert_eq!(ended("exit 0"), Ended::Done);
        assert_eq!(ended("exit 62"), Ended::GivenUp);
        assert!(matches!(ended("exit 63"), Ended::Stop(_)));
        assert_eq!(ended("test \"$BARMAN_PHASE\" = post"), Ended::Done);
    }

    #[test]
    fn another_code_is_tried_again_until_it_succeeds() {
        let directory = tempfile::tempdir().unwrap();
        let mark = directory.path().join("mark");
        let line = format!("test -e {0} || {{ touch {0}; exit 7; }}", mark.display());
        let began = Instant::now();
        assert_eq!(ended(&line), Ended::Done);
        assert!(began.elapsed() >= SHORT_PAUSE);
    }

    #[test]
    fn a_script_that_hangs_is_killed_with_what_it_started() {
        let began = Instant::now();
        let hanging = script("sleep 60 & sleep 60", Some(200));
        hanging.run_once(&|| false);
        assert!(matches!(hanging.run_until_done(&|| false), Ended::Stop(_)));
        assert!(began.elapsed() < Duration::from_secs(20));
    }

    /// A script that writes the ids of its processes, and the directory that has them.
    fn lingering() -> (tempfile::TempDir, String) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("pids");
        let line = format!(
            "sleep 300 & echo $$ $! > {0}.part; mv {0}.part {0}; wait",
            path.display()
        );
        (directory, line)
    }

    fn pids(directory: &tempfile::TempDir) -> Option<Vec<i32>> {
        let text = std::fs::read_to_string(directory.path().join("pids")).ok()?;
        Some(text.split_whitespace().map(|pid| pid.parse().unwrap()).collect())
    }

    fn wait_until_gone(pids: &[i32]) {
        let until = Instant::now() + Duration::from_secs(20);
        while !are_gone(pids) {
            assert!(Instant::now() < until, "{pids:?}");
            std::thread::sleep(LOOK_EVERY);
        }
    }

    fn are_gone(pids: &[i32]) -> bool {
        let is_gone = |pid: &i32| {
            let status = std::fs::read_to_string(format!("/proc/{pid}/stat"));
            status.map_or(true, |status| status.contains(") Z "))
        };
        pids.iter().all(is_gone)
    }

    #[test]
    fn a_script_ends_with_the_process_that_is_to_end() {
        let (directory, line) = lingering();
        let is_stopped = || pids(&directory).is_some();
        let began = Instant::now();
        script(&line, None).run_once(&is_stopped);
        wait_until_gone(&pids(&directory).unwrap());
        assert!(began.elapsed() < Duration::from_secs(20));
    }

    #[test]
    fn a_script_that_begins_at_the_end_can_say_so() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("said");
        script(&format!("sleep 0.5; echo > {}", path.display()), None).run_once(&|| true);
        assert!(path.exists());
    }

    #[test]
    fn a_script_ends_with_a_process_that_is_killed() {
        let (directory, line) = lingering();
        let mut child = {
            let output = tempfile::tempfile().unwrap();
            shell(&line, (&output, &output))
        }
        .unwrap()
        .spawn()
        .unwrap();
        while pids(&directory).is_none() {
            std::thread::sleep(LOOK_EVERY);
        }
        // As the kernel does it then.
        drop(child.stdin.take());
        let began = Instant::now();
        child.wait().unwrap();
        wait_until_gone(&pids(&directory).unwrap());
        assert!(began.elapsed() < Duration::from_secs(20));
    }

    #[test]
    fn what_a_script_leaves_running_goes_on() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("pids");
        let line = format!("sleep 300 & echo $! > {}", path.display());
        assert_eq!(ended(&line), Ended::Done);
        std::thread::sleep(Duration::from_millis(300));
        let left = pids(&directory).unwrap();
        assert!(!are_gone(&left));
        rustix::process::kill_process(Pid::from_raw(left[0]).unwrap(), Signal::KILL).unwrap();
    }

    #[test]
    fn who_is_to_end_does_not_wait_for_the_next_attempt() {
        let looks = AtomicU32::new(0);
        let is_stopped = || looks.fetch_add(1, Ordering::Relaxed) > 0;
        assert!(matches!(
            script("exit 1", None).run_until_done(&is_stopped),
            Ended::Stop(_)
        ));
    }
}
