//! Locks that stay usable after a panic.
//!
//! The standard library poisons a lock when a thread panics while it holds the lock, and every later `lock()` fails.
//! Here a panic ends one request or one job, never the process. So no guarded value is left half changed: a change
//! computes first and assigns last, and everything behind a lock is valid between any two statements.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

/// Locks, even if a thread panicked while it held the lock.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Locks for reading.
pub fn read<T>(lock: &RwLock<T>) -> RwLockReadGuard<'_, T> {
    lock.read().unwrap_or_else(PoisonError::into_inner)
}

/// Locks for writing.
pub fn write<T>(lock: &RwLock<T>) -> RwLockWriteGuard<'_, T> {
    lock.write().unwrap_or_else(PoisonError::into_inner)
}

/// Waits until the condition is notified; the lock is released meanwhile.
pub fn wait<'a, T>(condition: &Condvar, guard: MutexGuard<'a, T>) -> MutexGuard<'a, T> {
    condition.wait(guard).unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    #[test]
    fn a_panic_leaves_the_lock_usable() {
        let value = Arc::new((Mutex::new(1), RwLock::new(2)));
        let held = Arc::clone(&value);
        let panicked = std::thread::spawn(move || {
            let (_mutex, _lock) = (lock(&held.0), write(&held.1));
            panic!("on purpose");
        });
        assert!(panicked.join().is_err());
        assert!(value.0.is_poisoned() && value.1.is_poisoned());
        assert_eq!((*lock(&value.0), *read(&value.1)), (1, 2));
    }
}
