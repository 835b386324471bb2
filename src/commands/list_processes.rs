//! `barmanfs list-processes`.

use super::App;
use crate::cli::server::ListProcessesArgs;
use crate::error::{Error, Outcome};
use crate::output::{Align, Table};
use crate::processes;
use crate::report::ListedProcess;

/// Runs the command.
pub(crate) fn run(app: &mut App, args: &ListProcessesArgs) -> Result<Outcome, Error> {
    let repository = app.repository()?;
    let server = app.known_server(&repository, &args.server)?;
    let found = processes::of(&repository, &server)?;
    let listed: Vec<ListedProcess> = found.iter().map(ListedProcess::new).collect();
    if args.json.json {
        app.out.json_list("processes", &listed)?;
    } else if listed.is_empty() {
        app.out
            .line(format_args!("No process works on server {server} now"))?;
    } else {
        let mut table = Table::new(&[
            ("Process", Align::Right),
            ("Task", Align::Left),
            ("What", Align::Left),
        ]);
        for process in &listed {
            let number = process
                .process
                .map_or_else(|| "-".to_owned(), |number| number.to_string());
            table.row([number.into(), process.task.into(), process.holder.clone().into()]);
        }
        app.out.table(&table)?;
    }
    Ok(Outcome::Done)
}
