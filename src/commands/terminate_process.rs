//! `barmanfs terminate-process`.

use super::App;
use crate::cli::server::TerminateProcessArgs;
use crate::error::{Error, Outcome};
use crate::processes::{self, Process};
use crate::report::ListedProcess;

/// Runs the command.
pub(crate) fn run(app: &mut App, args: &TerminateProcessArgs) -> Result<Outcome, Error> {
    let repository = app.repository()?;
    let server = app.known_server(&repository, &args.server)?;
    let found = processes::of(&repository, &server)?;
    let (wanted, others): (Vec<Process>, Vec<Process>) =
        found.into_iter().partition(|process| process.task == args.task);
    let none = || {
        let mut tasks: Vec<&str> = others.iter().map(|process| process.task).collect();
        tasks.dedup();
        let error = Error::failed(format!(
            "No process of task {} works on server {server}",
            args.task
        ));
        match tasks.as_slice() {
            [] => error,
            tasks => error.hint(format!("There are: {}", tasks.join(", "))),
        }
    };
    let (mut ended, mut failed) = (Vec::new(), None);
    for process in &wanted {
        match process.terminate(&repository) {
            Ok(true) => ended.push(ListedProcess::new(process)),
            Ok(false) => {}
            Err(error) => failed = Some(error),
        }
    }
    if args.json.json {
        app.out.json_list("processes", &ended)?;
    } else {
        for process in &ended {
            let number = process.process.unwrap_or_default();
            app.out.line(format_args!(
                "Process {number} ({}) was asked to end",
                process.task
            ))?;
        }
    }
    match failed {
        Some(error) => Err(error),
        None if ended.is_empty() => Err(none()),
        None => Ok(Outcome::Done),
    }
}
