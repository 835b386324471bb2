//! The checkpoint at the start of a base backup. The server sends nothing during it.

use std::time::Duration;

use crate::error::Error;
use crate::output;
use crate::postgres::Connection;

/// Additional time for a checkpoint beyond the server's plan, in case its disks are too slow.
const OVERTIME: Duration = Duration::from_secs(30 * 60);

/// The longest accepted time. PostgreSQL limits checkpoint_timeout to a day.
const LONGEST_S: u64 = 30 * 86400;

/// How the server spreads checkpoints.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Checkpoint {
    timeout: Option<Duration>,
    /// The fraction of the time to use, between 0 and 1.
    target: f64,
}

impl Checkpoint {
    /// Reads the server's settings.
    pub(crate) fn ask(connection: &mut Connection) -> Result<Self, Error> {
        let target = connection
            .show("checkpoint_completion_target")?
            .parse()
            .unwrap_or(1.0);
        Ok(Self {
            timeout: duration(&connection.show("checkpoint_timeout")?),
            target: if (0.0..=1.0).contains(&target) {
                target
            } else {
                1.0
            },
        })
    }

    /// The planned duration of a spread checkpoint, at most.
    fn planned(&self) -> Option<Duration> {
        self.timeout.map(|timeout| timeout.mul_f64(self.target))
    }

    /// How long to wait for the checkpoint.
    pub(crate) fn patience(&self) -> Duration {
        self.timeout
            .unwrap_or_default()
            .saturating_mul(2)
            .saturating_add(OVERTIME)
    }

    /// Describes what the backup is waiting for.
    pub(crate) fn sentence(&self, is_fast: bool) -> String {
        if is_fast {
            return "waiting for an immediate checkpoint of the server".to_owned();
        }
        let planned = self.planned().map_or_else(String::new, |planned| {
            format!(
                ", which may take {} (checkpoint_timeout * checkpoint_completion_target)",
                output::duration(planned)
            )
        });
        format!(
            "waiting for a checkpoint of the server{planned}; immediate_checkpoint = on or --fast-checkpoint makes it quick"
        )
    }
}

/// A time as PostgreSQL shows it: `5min`, `90s`.
fn duration(text: &str) -> Option<Duration> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let number: u64 = digits.parse().ok()?;
    let seconds = match text.get(digits.len()..)? {
        "s" => 1,
        "min" => 60,
        "h" => 3600,
        "d" => 86400,
        _ => return None,
    };
    let seconds = number
        .checked_mul(seconds)
        .filter(|seconds| *seconds <= LONGEST_S)?;
    Some(Duration::from_secs(seconds))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_as_they_are_shown() {
        assert_eq!(duration("5min"), Some(Duration::from_secs(300)));
        assert_eq!(duration("90s"), Some(Duration::from_secs(90)));
        assert_eq!(duration("1d"), Some(Duration::from_secs(86400)));
        for wrong in ["", "5", "min", "5 min", "-1s", "99999999999999999999d"] {
            assert_eq!(duration(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn the_checkpoint_notice_names_its_time_and_remedy() {
        let spread = Checkpoint {
            timeout: Some(Duration::from_secs(300)),
            target: 0.9,
        };
        let text = spread.sentence(false);
        assert!(text.contains("may take 4 min 30 s"), "{text}");
        assert!(text.contains("immediate_checkpoint = on"), "{text}");
        assert!(spread.patience() > Duration::from_secs(600));
    }
}
