//! What a script on the other host prints, read to its end.

use std::io::{self, Read};

use crate::error::Error;
use crate::restore::remote::RemoteShell;
use crate::restore::remote::shell::{Output, Session};

/// The output of a script. Its end is an error when the script has failed: what was cut off never looks whole.
#[derive(Debug)]
pub(super) struct Stream {
    session: Session,
    output: Option<Output>,
    on_loss: OnLoss,
}

/// Holds the first reason why nothing more can be read.
pub(super) type OnLoss = std::sync::Arc<std::sync::Mutex<Option<Error>>>;

impl Stream {
    /// Starts a script.
    ///
    /// # Errors
    /// When the command that reaches the other host cannot be run.
    pub(super) fn start(
        shell: &RemoteShell,
        doing: &'static str,
        script: &str,
        on_loss: &OnLoss,
    ) -> Result<Self, Error> {
        let mut session = shell.start(doing, script)?;
        let output = session.output.take();
        Ok(Self {
            output: Some(output.ok_or_else(|| Error::failed("A script has no output"))?),
            session,
            on_loss: OnLoss::clone(on_loss),
        })
    }

    fn end(&mut self) -> io::Result<()> {
        self.output = None;
        self.session.finish().map_err(|error| {
            let text = error.to_string();
            if self.session.is_lost() {
                barmanfs_store::sync::lock(&self.on_loss).get_or_insert(error);
            }
            io::Error::other(text)
        })
    }
}

impl Read for Stream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let Some(output) = &mut self.output else {
            return Ok(0);
        };
        match output.read(buffer) {
            Ok(0) if !buffer.is_empty() => self.end().map(|()| 0),
            // What the command says about its end is the better reason.
            Err(error) if error.kind() != io::ErrorKind::Interrupted => self.end().and(Err(error)),
            read => read,
        }
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        if self.output.take().is_some() {
            self.session.abort();
        }
    }
}
