//! Advice about forks of a server's history.

use barmanfs_catalog::{Fork, Repository, ServerName};

use crate::error::Error;

/// The advice about a fork, in one line.
pub(crate) fn advice(server: &ServerName, fork: &Fork) -> String {
    match fork.decided {
        None => format!(
            "End the server that does not count, then decide: 'barmanfs history {server} restart --at {}' if the new history \
             counts, 'barmanfs history {server} keep --at {}' if the archived one does",
            fork.lsn, fork.lsn
        ),
        Some(_) => format!("That was decided: end the server that archives it as '{server}'"),
    }
}

/// Logs the undecided forks. They are logged when JSON is printed, too.
pub(crate) fn log_open(repository: &Repository, server: &ServerName) -> Result<(), Error> {
    for fork in repository.open_forks(server)? {
        tracing::error!("Server {server}: {fork}. {}", advice(server, &fork));
    }
    Ok(())
}
