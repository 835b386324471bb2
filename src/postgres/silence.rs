//! A server that sends nothing for a long time may be working: its checkpoint before a base backup takes minutes. So
//! such a wait has no fixed limit. From time to time, another connection checks whether the server still answers.

use std::time::{Duration, Instant};

use super::Error;

/// Time of silence before the server is checked.
pub(super) const LOOK_EVERY: Duration = Duration::from_secs(30);

/// Time limit of the other connection.
pub(super) const PROBE_WITHIN: Duration = Duration::from_secs(20);

/// Maximum time of silence, even if the server answers the checks.
pub(super) const PATIENCE: Duration = Duration::from_secs(30 * 60);

/// Number of consecutive failed checks after which the wait ends.
const MAX_FAILED_PROBES: u32 = 2;

/// The state of a wait.
#[derive(Debug)]
pub(super) struct Silence {
    /// Whether waits are watched. Then they have no other limit.
    pub(super) is_watched: bool,
    /// See [`PATIENCE`].
    pub(super) patience: Duration,
    since: Instant,
    received_bytes: u64,
    failed_probes: u32,
    reported: Duration,
}

impl Default for Silence {
    fn default() -> Self {
        Self {
            is_watched: false,
            patience: PATIENCE,
            since: Instant::now(),
            received_bytes: 0,
            failed_probes: 0,
            reported: Duration::ZERO,
        }
    }
}

impl Silence {
    /// Begins a wait.
    pub(super) fn begin(&mut self, received_bytes: u64) {
        self.received_bytes = received_bytes;
        self.failed_probes = 0;
        self.reported = Duration::ZERO;
        self.since = Instant::now();
    }

    /// Whether a part of a message has arrived since the last check.
    pub(super) fn has_heard(&mut self, received_bytes: u64) -> bool {
        let heard = received_bytes != self.received_bytes;
        if heard {
            self.begin(received_bytes);
        }
        heard
    }

    /// Decides whether to continue waiting, after a check with another connection.
    ///
    /// # Errors
    /// [`Error::Silent`] if not.
    pub(super) fn judge(&mut self, target: &str, probe: Result<(), Error>) -> Result<(), Error> {
        let silent = self.since.elapsed();
        // Any answer counts, even that there are too many connections.
        let failure = probe.err().filter(|error| error.server().is_none());
        let Some(failure) = failure else {
            self.failed_probes = 0;
            if silent >= self.patience {
                return Err(Error::Silent { silent, probe: None });
            }
            if silent >= self.reported * 2 {
                self.reported = silent;
                tracing::info!(
                    "The {target} has sent nothing for {} s; it is there, and is waited for",
                    silent.as_secs()
                );
            }
            return Ok(());
        };
        self.failed_probes += 1;
        if self.failed_probes < MAX_FAILED_PROBES {
            tracing::warn!("The {target} has fallen silent and does not answer: {failure}");
            return Ok(());
        }
        Err(Error::Silent {
            silent,
            probe: Some(Box::new(failure)),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn silent_for(time: Duration) -> Silence {
        Silence {
            since: Instant::now().checked_sub(time).unwrap(),
            ..Silence::default()
        }
    }

    #[test]
    fn a_server_that_answers_is_waited_for() {
        let mut silence = silent_for(PATIENCE / 2);
        silence.judge("server", Ok(())).unwrap();
        let error = silent_for(PATIENCE).judge("server", Ok(())).unwrap_err();
        assert_eq!(
            error.to_string(),
            "The server has sent nothing for 1800 s, though it answers other connections"
        );
        let mut silence = silent_for(PATIENCE);
        silence.patience = PATIENCE * 2;
        silence.judge("server", Ok(())).unwrap();
    }

    #[test]
    fn a_server_that_does_not_answer_is_given_up() {
        let mut silence = silent_for(LOOK_EVERY);
        silence.judge("server", Err(Error::Closed)).unwrap();
        silence.judge("server", Ok(())).unwrap();
        silence.judge("server", Err(Error::Closed)).unwrap();
        let error = silence.judge("server", Err(Error::Closed)).unwrap_err();
        assert!(
            error
                .to_string()
                .contains("cannot be reached by another connection"),
            "{error}"
        );
    }

    #[test]
    fn a_part_of_a_message_is_a_sign_of_life() {
        let mut silence = silent_for(PATIENCE);
        assert!(!silence.has_heard(0));
        assert!(silence.has_heard(1));
        assert!(!silence.has_heard(1));
        silence.judge("server", Ok(())).unwrap();
    }
}
