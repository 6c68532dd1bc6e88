//! The signals of a fault end the process at once; what would outlive it is cleaned up before.
//!
//! SIGBUS is the host's answer to a touch of memory that it cannot give, and SIGSYS the answer to a system call that
//! the filter of a thread does not allow: they have exit codes of their own. All others end the process as they would
//! without this module.
//!
//! # References
//! signal-safety(7); sigaction(2), si_code for SIGBUS and SIGSYS; Linux Documentation/mm/hwpoison.rst,
//! Documentation/userspace-api/seccomp_filter.rst
#![allow(unsafe_code)]

use std::ffi::{CStr, CString, c_int, c_void};
use std::fmt::{self, Write};
use std::mem::MaybeUninit;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::ptr;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicPtr, AtomicU64, Ordering};

use rustix::termios::Termios;

use super::nonblocking::NonBlocking;
use crate::exit_status::ExitStatus;

/// SIGABRT comes last in a panic that cannot unwind.
const SIGNALS: [c_int; 6] =
    [libc::SIGBUS, libc::SIGSYS, libc::SIGSEGV, libc::SIGILL, libc::SIGFPE, libc::SIGABRT];

/// The code of SIGSYS for a call that a filter does not allow (`SYS_SECCOMP` in asm-generic/siginfo.h).
const FORBIDDEN_CALL: c_int = 1;
/// Where a siginfo has the number of that call, in bytes: behind the signal, three words and an address
/// (`_sigsys` in asm-generic/siginfo.h, on a machine of 64 bits).
const CALL_OFFSET: usize = 24;

/// System calls by number: a line each. Text, as a table of names would have to be relocated in each process.
const CALLS: &str = include_str!("../../../resources/seccomp/aarch64.calls");

/// Codes of SIGBUS: there is no page; the hardware failed; the page is poisoned and was touched, or was not.
const NO_PAGE: c_int = 2;
const HARDWARE: c_int = 3;
const POISON_TOUCHED: c_int = 4;
const POISON: c_int = 5;

/// A terminal, an API socket, a console socket, and room for as many again.
const PLACES: usize = 8;

/// A signal handler has no other way to what it needs than through statics. Who swaps a pointer out of its
/// place owns what it points to.
static LEFTOVERS: [AtomicPtr<Leftover>; PLACES] =
    [const { AtomicPtr::new(ptr::null_mut()) }; PLACES];
static GUEST_MEMORY: [AtomicU64; 3] = [const { AtomicU64::new(0) }; 3];
/// Standard error.
static OUTPUT: OnceLock<NonBlocking> = OnceLock::new();
static BEFORE: OnceLock<[libc::sigaction; SIGNALS.len()]> = OnceLock::new();

/// What would stay behind when the process ends.
enum Leftover {
    /// A terminal in raw mode, and its modes before.
    Terminal(OwnedFd, Termios),
    /// A file, and which one it is: a successor may have replaced it.
    File { path: CString, device: u64, inode: u64 },
}

/// Keeps something to be cleaned up in a fault, until it is dropped.
#[derive(Debug)]
pub(crate) struct OnFault {
    place: usize,
}

impl OnFault {
    /// Restores a terminal. `None` where there is no place for it.
    pub(crate) fn restore(terminal: OwnedFd, modes: Termios) -> Option<Self> {
        Self::keep(Leftover::Terminal(terminal, modes))
    }

    /// Removes the file at an absolute path, if it is still this one.
    pub(crate) fn remove(path: &std::path::Path, device: u64, inode: u64) -> Option<Self> {
        let path = CString::new(path.as_os_str().as_encoded_bytes()).ok()?;
        Self::keep(Leftover::File { path, device, inode })
    }

    fn keep(leftover: Leftover) -> Option<Self> {
        let leftover = Box::into_raw(Box::new(leftover));
        let place = LEFTOVERS.iter().position(|place| {
            let (free, order) = (ptr::null_mut(), Ordering::SeqCst);
            place.compare_exchange(free, leftover, order, order).is_ok()
        });
        if place.is_none() {
            // SAFETY: it was just made from a box, and no place has it.
            drop(unsafe { Box::from_raw(leftover) });
        }
        place.map(|place| Self { place })
    }
}

impl Drop for OnFault {
    fn drop(&mut self) {
        let leftover = LEFTOVERS[self.place].swap(ptr::null_mut(), Ordering::SeqCst);
        if !leftover.is_null() {
            // SAFETY: it was made from a box, and who swaps it out of its place owns it.
            drop(unsafe { Box::from_raw(leftover) });
        }
    }
}

/// Says where guest memory is in this process, and its first guest-physical address, for the message.
pub(crate) fn set_guest_memory(host: &Range<u64>, base: u64) {
    for (figure, value) in GUEST_MEMORY.iter().zip([host.start, host.end, base]) {
        figure.store(value, Ordering::Relaxed);
    }
}

/// Opens standard error for messages: a thread that may open no files says its last words there.
pub(crate) fn open_output() {
    // Without it, as it is closed, nothing can be said.
    if let Ok(stderr) = std::io::stderr().as_fd().try_clone_to_owned() {
        let _ = OUTPUT.set(NonBlocking::shared(stderr));
    }
}

/// Standard error, if it has been opened.
pub(crate) fn output() -> Option<&'static NonBlocking> {
    OUTPUT.get()
}

/// Handles the signals from here on, in all threads. They run on the alternate stack that the standard
/// library gives the main thread and each thread that it starts.
pub fn install() {
    // SAFETY: all zeroes is an action: the default one, without flags.
    let unset: libc::sigaction = unsafe { MaybeUninit::zeroed().assume_init() };
    let mut before = [unset; SIGNALS.len()];
    for (signal, before) in SIGNALS.into_iter().zip(&mut before) {
        // SAFETY: with no new action the call only writes the present one.
        unsafe { libc::sigaction(signal, ptr::null(), before) };
    }
    if BEFORE.set(before).is_err() {
        return;
    }
    let mut action = unset;
    action.sa_sigaction = handle as *const () as libc::sighandler_t;
    action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
    for signal in SIGNALS {
        // SAFETY: the mask is the action's own. The handler has the signature that SA_SIGINFO asks for, and
        // calls only what may be called in a handler.
        unsafe {
            libc::sigfillset(&mut action.sa_mask);
            libc::sigaction(signal, &action, ptr::null_mut());
        }
    }
}

extern "C" fn handle(signal: c_int, info: *mut libc::siginfo_t, context: *mut c_void) {
    // SAFETY: the kernel hands a siginfo to a handler that is installed with SA_SIGINFO.
    let info = unsafe { &*info };
    clean_up();
    if signal == libc::SIGBUS && (NO_PAGE..=POISON).contains(&info.si_code) {
        // SAFETY: the kernel fills in an address for these codes.
        let address = unsafe { info.si_addr() } as u64;
        report(address, info.si_code);
        // SAFETY: it ends the process without running anything else of it.
        unsafe { libc::_exit(i32::from(ExitStatus::MemoryFault as u8)) };
    }
    if signal == libc::SIGSYS && info.si_code == FORBIDDEN_CALL {
        // SAFETY: a siginfo has 128 bytes, and the kernel fills the number in for this code.
        let call = unsafe { (&raw const *info).byte_add(CALL_OFFSET).cast::<c_int>().read() };
        // SAFETY: the kernel hands the context of the thread to such a handler.
        report_call(call, unsafe { arguments(context) });
        // SAFETY: as above.
        unsafe { libc::_exit(i32::from(ExitStatus::SystemCall as u8)) };
    }
    let before = BEFORE.get().and_then(|before| {
        let at = SIGNALS.iter().position(|known| *known == signal)?;
        before.get(at)
    });
    // SAFETY: the action is what was installed before, or the default one. The instruction that failed is
    // executed again and fails again; a signal that was sent is sent again, for which the standard library's
    // action would do nothing. It is blocked until this handler returns.
    unsafe {
        match before.filter(|_| info.si_code > 0) {
            Some(before) => {
                libc::sigaction(signal, before, ptr::null_mut());
            }
            None => {
                libc::signal(signal, libc::SIG_DFL);
                libc::raise(signal);
            }
        }
    }
}

/// Cleans up what would outlive the process, which is about to end: what is still registered belongs to threads that are
/// left.
pub fn clean_up() {
    LEFTOVERS.iter().for_each(clean_up_place);
}

/// Cleans one place up. Nothing is freed: the allocator may be in the middle of something.
fn clean_up_place(place: &AtomicPtr<Leftover>) {
    let leftover = place.swap(ptr::null_mut(), Ordering::SeqCst);
    // SAFETY: a pointer in a place is null or from a box; once swapped out nothing else has it.
    match unsafe { leftover.as_ref() } {
        // A system call. SIGTTOU is blocked here, so that a process in the background may do it, too.
        Some(Leftover::Terminal(terminal, modes)) => {
            let now = rustix::termios::OptionalActions::Now;
            let _ = rustix::termios::tcsetattr(terminal, now, modes);
        }
        Some(Leftover::File { path, device, inode }) => remove(path, *device, *inode),
        None => {}
    }
}

fn remove(path: &CStr, device: u64, inode: u64) {
    let mut found = MaybeUninit::<libc::stat>::uninit();
    // SAFETY: the path ends with a zero, and the call writes a stat, if anything.
    if unsafe { libc::lstat(path.as_ptr(), found.as_mut_ptr()) } != 0 {
        return;
    }
    // SAFETY: the call succeeded, so it has written it.
    let found = unsafe { found.assume_init() };
    if (found.st_dev, found.st_ino) == (device, inode) {
        // SAFETY: the path ends with a zero.
        unsafe { libc::unlink(path.as_ptr()) };
    }
}

/// A text in a handler's own memory; what does not fit is left out.
struct Text {
    bytes: [u8; 512],
    length: usize,
}

impl Write for Text {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let room = &mut self.bytes[self.length..];
        let fits = text.len().min(room.len());
        room[..fits].copy_from_slice(&text.as_bytes()[..fits]);
        self.length += fits;
        Ok(())
    }
}

/// The name of a thread, with a zero at its end.
type ThreadName = [u8; 17];

fn thread_name(name: &mut ThreadName) -> &str {
    // SAFETY: the call writes at most 16 bytes (prctl(2)).
    unsafe { libc::prctl(libc::PR_GET_NAME, name.as_mut_ptr()) };
    let name = CStr::from_bytes_until_nul(name).ok().and_then(|name| name.to_str().ok());
    name.unwrap_or("?")
}

/// The name of a system call on arm64, which alone has filters.
fn call_name(call: c_int) -> Option<&'static str> {
    let mut calls = CALLS.lines().filter_map(|line| line.split_once(' '));
    calls.find(|(number, _)| number.parse() == Ok(call)).map(|(_, name)| name)
}

/// The first three arguments of the call that a thread has made, which it has in registers.
///
/// # Safety
/// This is a context that the kernel has handed to a handler.
#[cfg(target_arch = "aarch64")]
unsafe fn arguments(context: *mut c_void) -> [u64; 3] {
    // SAFETY: by the contract of this function.
    let context = unsafe { &*context.cast::<libc::ucontext_t>() };
    let [first, second, third, ..] = context.uc_mcontext.regs;
    [first, second, third]
}

/// Other architectures have no filters.
#[cfg(not(target_arch = "aarch64"))]
unsafe fn arguments(_: *mut c_void) -> [u64; 3] {
    [0; 3]
}

/// Says which thread has made which call. Without waiting for a reader, and without any lock.
fn report_call(call: c_int, [first, second, third]: [u64; 3]) {
    let mut name = ThreadName::default();
    let mut text = Text { bytes: [0; 512], length: 0 };
    let (thread, call_name) = (thread_name(&mut name), call_name(call).unwrap_or("?"));
    // Writing into memory cannot fail.
    let _ = writeln!(
        text,
        "tessera: thread {thread} made the system call {call_name} ({call}) with {first:#x}, {second:#x}, {third:#x}, \
         which its filter does not allow. The process ends. Please report this; --seccomp off runs without filters"
    );
    say(&text.bytes[..text.length]);
}

/// Says which thread has touched what. Without waiting for a reader, and without any lock.
fn report(address: u64, code: c_int) {
    let mut name = ThreadName::default();
    let thread = thread_name(&mut name);
    let why = match code {
        POISON_TOUCHED | POISON => "the hardware reports that it is damaged (memory poison)",
        HARDWARE => "the hardware reports an error",
        _ => "the pool of huge pages is empty, or swapped memory cannot be read back",
    };
    let mut text = Text { bytes: [0; 512], length: 0 };
    let [start, end, base] = [0, 1, 2].map(|at: usize| GUEST_MEMORY[at].load(Ordering::Relaxed));
    // Writing into memory cannot fail.
    let _ = if (start..end).contains(&address) {
        let guest = base.wrapping_add(address - start);
        write!(text, "tessera: thread {thread} touched guest memory at guest address {guest:#x}")
    } else {
        write!(text, "tessera: thread {thread} touched the VMM's own memory at {address:#x}")
    };
    let _ = writeln!(text, ", and the host cannot give that page: {why}. The process ends.");
    say(&text.bytes[..text.length]);
}

/// Writes what standard error takes of a text at once.
fn say(text: &[u8]) {
    let opened;
    let output = match output() {
        Some(output) => output,
        None => {
            // SAFETY: nothing in this process closes standard error; if it was closed at the start, the copy fails.
            let stderr = unsafe { BorrowedFd::borrow_raw(libc::STDERR_FILENO) };
            let Ok(copy) = stderr.try_clone_to_owned() else { return };
            opened = NonBlocking::shared(copy);
            &opened
        }
    };
    let mut left = text;
    while let Ok(written @ 1..) = output.write(left) {
        left = left.get(written..).unwrap_or_default();
    }
}

/// Touches a page that is gone: one behind the end of a file.
#[cfg(test)]
pub(crate) fn touch_behind_the_end(file: &std::fs::File, guest_base: Option<u64>) -> u8 {
    use rustix::mm::{MapFlags, ProtFlags};
    let (flags, page) = (MapFlags::SHARED, rustix::param::page_size());
    file.set_len(page as u64).expect("a file of one page");
    // SAFETY: a new mapping at an address of the kernel's choice, from which one byte is read.
    unsafe {
        let start = rustix::mm::mmap(ptr::null_mut(), page, ProtFlags::READ, flags, file, 0)
            .expect("a mapping");
        if let Some(base) = guest_base {
            set_guest_memory(&(start as u64..start as u64 + page as u64), base);
        }
        file.set_len(0).expect("a file that can be cut");
        start.cast::<u8>().add(16).read_volatile()
    }
}

#[cfg(test)]
mod tests;
