//! Work on many servers at a time.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;

use barmanfs_store::sync::lock;
use barmanfs_store::threads;

/// How many servers are worked on at a time. Most of that time is waiting for them.
const THREADS_MAX: usize = 16;

/// Does `work` for each of `items` in a bounded number of threads. The results are in the order of the items. An item that
/// takes long keeps one thread, and does not stop the others.
pub(crate) fn each<T: Sync, R: Send>(items: &[T], work: impl Fn(&T) -> R + Sync) -> Vec<R> {
    let next = AtomicUsize::new(0);
    let done = Mutex::new(Vec::with_capacity(items.len()));
    thread::scope(|scope| {
        let work_through = || {
            loop {
                let nth = next.fetch_add(1, Ordering::Relaxed);
                let Some(item) = items.get(nth) else { return };
                let result = work(item);
                lock(&done).push((nth, result));
            }
        };
        let wanted = items.len().min(THREADS_MAX);
        if wanted < 2 || threads::start_up_to(scope, "server", wanted, || work_through).is_err() {
            work_through();
        }
    });
    let mut done = done.into_inner().unwrap_or_else(PoisonError::into_inner);
    done.sort_by_key(|(nth, _)| *nth);
    done.into_iter().map(|(_, result)| result).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn results_are_in_the_order_of_the_items() {
        let items: Vec<u64> = (0..100).collect();
        let slow_first = |item: &u64| {
            thread::sleep(Duration::from_millis(u64::from(*item == 0) * 20));
            item * 2
        };
        let expected: Vec<u64> = items.iter().map(|item| item * 2).collect();
        assert_eq!(each(&items, slow_first), expected);
        assert!(each(&[] as &[u64], |item| *item).is_empty());
    }
}
