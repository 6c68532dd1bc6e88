//! Whether something keeps the system's clock at the right time.
#![allow(unsafe_code)]

/// Whether the clock is synchronised, as the kernel knows it (adjtimex(2)): an NTP client says so.
pub(crate) fn is_synchronised() -> bool {
    // SAFETY: a timex is plain integers, for which zeros are a value: no mode, nothing is changed.
    let mut state: libc::timex = unsafe { std::mem::zeroed() };
    // SAFETY: the pointer is to a timex of ours.
    let status = unsafe { libc::adjtimex(&raw mut state) };
    status >= 0 && status != libc::TIME_ERROR && state.status & libc::STA_UNSYNC == 0
}
