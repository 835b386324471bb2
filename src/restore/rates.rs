//! How fast restores on this host are. The repository keeps what the last ones measured, for estimates.

use std::time::Duration;

use barmanfs_catalog::{Repository, RestoreRates};

/// Less is written or replayed too quickly to measure anything.
const MIN_BYTES: u64 = 16 << 20;

/// What was measured here, if anything was.
pub(crate) fn known(repository: &Repository) -> RestoreRates {
    let memory = repository.repository_memory().unwrap_or_default();
    memory.restores.get(&host()).copied().unwrap_or_default()
}

/// Keeps the rate of a copy.
pub(crate) fn keep_copy(repository: &Repository, bytes: u64, elapsed: Duration) {
    keep(repository, bytes, elapsed, |rates| {
        &mut rates.copy_bytes_per_second
    });
}

/// Keeps the rate of a replay.
pub(crate) fn keep_replay(repository: &Repository, bytes: u64, elapsed: Duration) {
    keep(repository, bytes, elapsed, |rates| {
        &mut rates.replay_bytes_per_second
    });
}

/// A user who can only read the repository keeps nothing.
fn keep(
    repository: &Repository,
    bytes: u64,
    elapsed: Duration,
    place: impl Fn(&mut RestoreRates) -> &mut Option<u64>,
) {
    let Some(rate) = rate(bytes, elapsed) else { return };
    let kept = repository.remember_of_repository(|memory| {
        *place(memory.restores.entry(host()).or_default()) = Some(rate);
    });
    if let Err(error) = kept {
        tracing::debug!("The rate of this restore is not kept: {error}");
    }
}

fn rate(bytes: u64, elapsed: Duration) -> Option<u64> {
    let millis = u64::try_from(elapsed.as_millis()).ok()?.max(1);
    (bytes >= MIN_BYTES).then(|| bytes.saturating_mul(1000) / millis)
}

/// How long so many bytes take at a rate; `None` if that is unknown.
pub(crate) fn time_for(bytes: u64, bytes_per_second: Option<u64>) -> Option<Duration> {
    let millis = bytes.saturating_mul(1000).checked_div(bytes_per_second?)?;
    Some(Duration::from_millis(millis))
}

fn host() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    name.trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn little_says_nothing_about_the_rate() {
        assert_eq!(rate(1 << 20, Duration::from_secs(1)), None);
        assert_eq!(rate(100 << 20, Duration::from_secs(2)), Some(50 << 20));
        assert_eq!(rate(100 << 20, Duration::ZERO), Some((100 << 20) * 1000));
        assert_eq!(time_for(100, Some(50)), Some(Duration::from_secs(2)));
        assert_eq!(time_for(100, None), None);
        assert_eq!(time_for(100, Some(0)), None);
    }
}
