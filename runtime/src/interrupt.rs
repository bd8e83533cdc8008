//! Ctrl-C.
//!
//! It ends the process with 130. A command that has something to put in order says that it cooperates,
//! and asks [`is_pending`] between tokens; then it is the second Ctrl-C that ends the process.

use std::sync::atomic::{AtomicBool, Ordering};

/// What Ctrl-C ends the process with: 128 + SIGINT.
pub(crate) const EXIT_CODE: i32 = 130;

static PENDING: AtomicBool = AtomicBool::new(false);
static COOPERATES: AtomicBool = AtomicBool::new(false);

extern "C" fn on_interrupt(_signal: libc::c_int) {
    if PENDING.swap(true, Ordering::SeqCst) || !COOPERATES.load(Ordering::SeqCst) {
        // SAFETY: `_exit` may be called from a signal handler.
        unsafe { libc::_exit(EXIT_CODE) };
    }
}

/// Takes over Ctrl-C. System calls that wait return early then, so that reading a line notices it.
pub(crate) fn install() {
    // SAFETY: the handler only touches atomics and `_exit`; zeros are a valid `sigaction` with no flags
    // and an empty mask.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = on_interrupt as *const () as libc::sighandler_t;
        libc::sigaction(libc::SIGINT, &action, std::ptr::null_mut());
    }
}

/// From now on the command asks [`is_pending`] often enough.
pub(crate) fn cooperate() {
    COOPERATES.store(true, Ordering::SeqCst);
}

/// Whether Ctrl-C was pressed since [`clear`].
pub(crate) fn is_pending() -> bool {
    PENDING.load(Ordering::SeqCst)
}

/// Forgets a Ctrl-C that was obeyed.
pub(crate) fn clear() {
    PENDING.store(false, Ordering::SeqCst);
}

/// Lets writes into a closed pipe fail with an error instead of ending the process.
pub(crate) fn ignore_closed_pipes() {
    // SAFETY: ignoring a signal installs no handler.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_IGN) };
}
