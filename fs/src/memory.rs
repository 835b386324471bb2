//! Gives memory back to the operating system.

/// Gives back what was freed and is kept for later by the allocator: after a look at everything, that is far more than what
/// will be needed again.
#[allow(unsafe_code)]
pub(crate) fn give_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: it takes no pointer, and other threads may allocate meanwhile.
    unsafe {
        libc::malloc_trim(0);
    }
}
