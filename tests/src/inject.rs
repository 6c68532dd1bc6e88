//! Has a thread of a running process make another system call than it would.
//!
//! The kernel looks at a thread's filters after its tracer has seen the call (`syscall_trace_enter` in
//! arch/arm64/kernel/ptrace.c): what the tracer makes of it is what they decide on.
//!
//! # References
//! ptrace(2)
#![allow(unsafe_code)]

use std::fs;
use std::io;
use std::time::Duration;

/// The general registers of a thread (`struct user_regs_struct`).
#[repr(C)]
#[derive(Default)]
struct Registers {
    x: [u64; 31],
    sp: u64,
    pc: u64,
    pstate: u64,
}

// Requests, whose types differ between the C libraries (include/uapi/linux/ptrace.h).
const SYSCALL: u32 = 24;
const DETACH: u32 = 17;
const GETREGSET: u32 = 0x4204;
const SETREGSET: u32 = 0x4205;
const SEIZE: u32 = 0x4206;
const INTERRUPT: u32 = 0x4207;
const GET_SYSCALL_INFO: u32 = 0x420e;
/// `PTRACE_O_TRACESYSGOOD`.
const MARKED: usize = 1;

// Sets of registers (include/uapi/linux/elf.h).
const GENERAL: usize = 1;
const SYSTEM_CALL: usize = 0x404;
/// The kind of stop in `struct ptrace_syscall_info`.
const ENTRY: u8 = 1;

/// The thread of this name.
pub fn thread_of(process: u32, name: &str) -> Option<i32> {
    let tasks = fs::read_dir(format!("/proc/{process}/task")).ok()?.flatten();
    let mut threads = tasks.filter_map(|task| task.file_name().to_str()?.parse().ok());
    threads.find(|thread: &i32| {
        let path = format!("/proc/{process}/task/{thread}/comm");
        fs::read_to_string(path).is_ok_and(|found| found.trim_end() == name)
    })
}

/// A thread whose next system call is another one.
pub struct Change<'a> {
    /// The thread.
    pub thread: i32,
    /// The call that is changed; the next one, whatever it is, where there is none.
    pub call: Option<u64>,
    /// The call that it becomes, if it does.
    pub becomes: Option<u32>,
    /// The arguments that it gets then.
    pub arguments: &'a [(usize, u64)],
}

impl Change<'_> {
    /// Waits for the call, changes it, and lets the thread go on.
    ///
    /// # Errors
    /// When this process may not trace the thread, or it ends.
    pub fn make(&self) -> io::Result<()> {
        self.make_after(Duration::ZERO)
    }

    /// The same, where the call takes so long: the thread is held as it makes it.
    ///
    /// # Errors
    /// As [`make`](Self::make).
    pub fn make_after(&self, time: Duration) -> io::Result<()> {
        let nothing = std::ptr::null_mut();
        // SAFETY: none of these requests has the kernel write to this process's memory.
        unsafe {
            let marked = MARKED as *mut libc::c_void;
            self.request(SEIZE, nothing, marked)?;
            self.request(INTERRUPT, nothing, nothing)?;
        }
        self.wait()?;
        loop {
            // SAFETY: as above.
            unsafe { self.request(SYSCALL, nothing, nothing)? };
            self.wait()?;
            if self.is_at_the_call()? {
                break;
            }
        }
        std::thread::sleep(time);
        self.change()?;
        // SAFETY: as above.
        unsafe { self.request(DETACH, nothing, nothing) }
    }

    fn is_at_the_call(&self) -> io::Result<bool> {
        let mut info = [0u64; 16];
        let size = size_of_val(&info) as *mut libc::c_void;
        // SAFETY: the kernel writes at most so many bytes.
        unsafe { self.request(GET_SYSCALL_INFO, size, info.as_mut_ptr().cast())? };
        // The kind, three words of the place, and the number.
        let is_entry = info[0] as u8 == ENTRY;
        Ok(is_entry && self.call.is_none_or(|call| info[3] == call))
    }

    fn change(&self) -> io::Result<()> {
        let mut registers = Registers::default();
        let place = |bytes: *mut libc::c_void, size| libc::iovec { iov_base: bytes, iov_len: size };
        let mut all = place((&raw mut registers).cast(), size_of_val(&registers));
        let mut number = self.becomes.unwrap_or_default();
        let mut only = place((&raw mut number).cast(), size_of_val(&number));
        let (general, call) = (GENERAL as *mut libc::c_void, SYSTEM_CALL as *mut libc::c_void);
        let all: *mut libc::iovec = &mut all;
        // SAFETY: the kernel reads and writes what the vectors describe, which lives as long as the calls.
        unsafe {
            self.request(GETREGSET, general, all.cast())?;
            for (argument, value) in self.arguments {
                // Through the pointer that the kernel has.
                (*(*all).iov_base.cast::<Registers>()).x[*argument] = *value;
            }
            self.request(SETREGSET, general, all.cast())?;
            if self.becomes.is_some() {
                self.request(SETREGSET, call, (&raw mut only).cast())?;
            }
        }
        Ok(())
    }

    /// # Safety
    /// Address and data are what the request asks for.
    unsafe fn request(
        &self,
        request: u32,
        address: *mut libc::c_void,
        data: *mut libc::c_void,
    ) -> io::Result<()> {
        // SAFETY: by the contract of this function.
        match unsafe { libc::ptrace(request as _, self.thread, address, data) } {
            -1 => Err(io::Error::last_os_error()),
            _ => Ok(()),
        }
    }

    /// Waits until the thread has stopped.
    fn wait(&self) -> io::Result<()> {
        let mut status = 0;
        // SAFETY: the kernel writes the status.
        let waited = unsafe { libc::waitpid(self.thread, &mut status, libc::__WALL) };
        match waited == self.thread && libc::WIFSTOPPED(status) {
            true => Ok(()),
            false => Err(io::Error::other(format!("the thread has ended: {status:#x}"))),
        }
    }
}
