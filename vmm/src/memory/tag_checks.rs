//! Tag checking of this process, turned off.
#![allow(unsafe_code)]

/// `PR_SET_TAGGED_ADDR_CTRL` and its getter, and the bits for synchronous and asynchronous tag checks
/// (include/uapi/linux/prctl.h).
const SET_TAGGED_ADDR_CTRL: libc::c_int = 55;
const GET_TAGGED_ADDR_CTRL: libc::c_int = 56;
const TAG_CHECK_MASK: libc::c_ulong = 0b11 << 1;

/// Turns tag checking off in this thread, and so in every thread it starts later. Guest memory is mapped
/// with tags that only the guest knows: a VMM that checked them would fault on its own accesses. The
/// environment can turn checking on in any process that is started (GLIBC_TUNABLES, a parent's prctl).
pub(crate) fn disable() {
    let none: libc::c_ulong = 0;
    // SAFETY: the call takes no pointers; the arguments it does not use must be zero.
    let now = unsafe { libc::prctl(GET_TAGGED_ADDR_CTRL, none, none, none, none) };
    // Negative: this machine has no tagged addresses, so nothing checks tags.
    let Ok(now) = libc::c_ulong::try_from(now) else {
        return;
    };
    if now & TAG_CHECK_MASK != 0 {
        // SAFETY: as above. It concerns this thread only, and no access of this program relies on tags.
        unsafe { libc::prctl(SET_TAGGED_ADDR_CTRL, now & !TAG_CHECK_MASK, none, none, none) };
    }
}
