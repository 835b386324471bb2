//! A gate that many threads wait at, and one opens.

use std::sync::{Arc, Condvar, Mutex, PoisonError};

/// Where threads wait.
#[derive(Debug, Clone, Default)]
pub(super) struct Gate {
    state: Arc<(Mutex<bool>, Condvar)>,
}

/// Opens the gate when it is dropped, however the thread ends that has it.
#[derive(Debug)]
pub(super) struct Opener(Gate);

impl Gate {
    /// A closed gate, and what opens it.
    pub(super) fn new() -> (Opener, Self) {
        let gate = Self::default();
        (Opener(gate.clone()), gate)
    }

    /// Waits until the gate is open.
    pub(super) fn wait(&self) {
        let (open, opened) = &*self.state;
        let open = open.lock().unwrap_or_else(PoisonError::into_inner);
        drop(opened.wait_while(open, |open| !*open));
    }
}

impl Drop for Opener {
    fn drop(&mut self) {
        let (open, opened) = &*self.0.state;
        *open.lock().unwrap_or_else(PoisonError::into_inner) = true;
        opened.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::thread;

    #[test]
    fn a_thread_that_fails_opens_the_gate_too() {
        let (opener, gate) = Gate::new();
        let failing = thread::spawn(move || {
            let _opener = opener;
            panic!("as in a test");
        });
        gate.wait();
        gate.clone().wait();
        assert!(failing.join().is_err());
    }
}
