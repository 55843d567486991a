//! Memory that was needed for a moment only.

/// Gives back what is free. To load or compare everything takes a few times as much as to keep it, and
/// glibc keeps freed memory that lies between what is still used.
pub(super) fn trim() {
    #[cfg(target_env = "gnu")]
    // SAFETY: malloc_trim takes no pointer and may be called at any time, from any thread.
    unsafe {
        libc::malloc_trim(0);
    }
}
