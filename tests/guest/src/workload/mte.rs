//! `mte`: writes tags and reads them back; then two children each make a mistake that MTE stops.

use std::process::{Command, ExitCode, Stdio};

use serde_json::{Value, json};

use super::After;
use crate::region::{GRANULE, Region};
use crate::{machine, report};

pub(super) const NAME: &str = "mte";
/// The first argument of a child.
pub(crate) const CHILD: &str = "mte-child";

/// Granules whose tags are compared: one page of 4 KiB.
const GRANULES: usize = 256;
/// Fewer different tags among so many mean that they are not chosen, or not kept.
const MIN_DISTINCT: usize = 8;
/// `SEGV_MTESERR` (include/uapi/asm-generic/siginfo.h): a synchronous tag check fault.
const SEGV_MTESERR: i64 = 9;
/// The mistakes, by the names of their reports.
const ACTS: [&str; 2] = ["overflow", "use_after_free"];
/// Bytes of the buffer that the children misuse, and where it lies.
const BUFFER: usize = 64;
const BUFFER_AT: usize = 128;

pub(super) fn run(_: Option<&str>) -> Result<After, String> {
    if !machine::has_mte() {
        report::send(NAME, "absent", json!({}));
        return Ok(After::PowerOff);
    }
    let mut ok = tags()?;
    ok &= mistakes()?;
    report::send(NAME, "done", json!({ "ok": ok }));
    Ok(After::PowerOff)
}

/// Gives each granule a tag and reads all of them back.
fn tags() -> Result<bool, String> {
    fault::choose_all_tags().map_err(|error| format!("no tags to choose from: {error}"))?;
    let region = Region::new(GRANULES * GRANULE, true)
        .map_err(|error| format!("no tagged memory: {error}"))?;
    let mut written = Vec::new();
    for index in 0..GRANULES {
        let offset = index * GRANULE;
        let tag = region.choose_tag(offset, 0);
        region.tag(offset, GRANULE, tag);
        written.push(tag);
    }
    let wrong = written
        .iter()
        .enumerate()
        .filter(|(index, tag)| region.tag_at(index * GRANULE) != **tag)
        .count();
    let distinct = (0..16).filter(|tag| written.contains(tag)).count();
    report::send(
        NAME,
        "tags",
        json!({ "granules": GRANULES, "distinct": distinct, "wrong": wrong, "ok": wrong == 0 && distinct >= MIN_DISTINCT }),
    );
    Ok(wrong == 0 && distinct >= MIN_DISTINCT)
}

/// Has a child make each mistake, reports them, and tells whether all were caught.
///
/// # Errors
/// When there is no child.
pub(super) fn mistakes() -> Result<bool, String> {
    let mut caught = true;
    for act in ACTS {
        caught &= mistake(act)?;
    }
    Ok(caught)
}

/// Has a child make the mistake `act`, and reports how it fared.
fn mistake(act: &str) -> Result<bool, String> {
    use std::os::unix::process::ExitStatusExt;
    let child = Command::new("/proc/self/exe")
        .args([CHILD, act])
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .map_err(|error| format!("no child: {error}"))?;
    let said = String::from_utf8_lossy(&child.stdout);
    let (caught, fields) = judge(&said, child.status.signal());
    report::send(NAME, act, fields);
    Ok(caught)
}

/// Whether a child's words and end mean that MTE stopped it at the right address.
fn judge(said: &str, signal: Option<i32>) -> (bool, Value) {
    let value = |name: &str| {
        let text = said.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='))?;
        i64::from_str_radix(text, 16).ok()
    };
    let (code, address, expected) = (value("code"), value("address"), value("expected"));
    let caught = signal == Some(libc::SIGSEGV)
        && code == Some(SEGV_MTESERR)
        && address.is_some()
        && address == expected;
    let hex = |number: Option<i64>| number.map(|number| format!("{number:#x}"));
    let fields = json!({
        "caught": caught,
        "signal": signal,
        "si_code": code,
        "address": hex(address),
        "expected_address": hex(expected),
        "pointer_tag": value("pointer"),
        "memory_tag": value("memory"),
    });
    (caught, fields)
}

/// The child's life: checks on, then the mistake, which must not be survived.
pub(crate) fn child(act: &str) -> ExitCode {
    let region = match prepare() {
        Ok(region) => region,
        Err(error) => {
            println!("error={error}");
            return ExitCode::from(3);
        }
    };
    let tag = region.choose_tag(BUFFER_AT, 1);
    region.tag(BUFFER_AT, BUFFER, tag);
    // Any tag but that of the buffer and 0, which all memory has at first.
    let other = region.choose_tag(BUFFER_AT, 1 | 1 << tag);
    let offset = if act == ACTS[0] {
        region.tag(BUFFER_AT + BUFFER, GRANULE, other);
        BUFFER_AT + BUFFER
    } else {
        region.write(BUFFER_AT, tag, 1);
        region.tag(BUFFER_AT, BUFFER, other);
        BUFFER_AT
    };
    println!(
        "expected={:x}\npointer={tag:x}\nmemory={:x}",
        region.address(offset),
        region.tag_at(offset)
    );
    region.write(offset, tag, 2);
    println!("survived=1");
    ExitCode::SUCCESS
}

fn prepare() -> std::io::Result<Region> {
    fault::check_synchronously()?;
    fault::tell_faults()?;
    Region::new(4096, true)
}

pub(super) use fault::check_synchronously;

/// Tag check faults of this process.
mod fault {
    #![allow(unsafe_code)]

    use std::io;

    /// `PR_SET_TAGGED_ADDR_CTRL` and its bits (include/uapi/linux/prctl.h).
    const SET_TAGGED_ADDR_CTRL: libc::c_int = 55;
    const TAGGED_ADDR_ENABLE: libc::c_ulong = 1;
    const TCF_SYNC: libc::c_ulong = 1 << 1;
    /// IRG may choose every tag but 0.
    const INCLUDE_TAGS: libc::c_ulong = 0xfffe << 3;

    /// Tags may be chosen; nothing is checked.
    pub(super) fn choose_all_tags() -> io::Result<()> {
        control(TAGGED_ADDR_ENABLE | INCLUDE_TAGS)
    }

    /// Faults come at the very access that is wrong.
    pub(in crate::workload) fn check_synchronously() -> io::Result<()> {
        control(TAGGED_ADDR_ENABLE | TCF_SYNC | INCLUDE_TAGS)
    }

    fn control(control: libc::c_ulong) -> io::Result<()> {
        let zero: libc::c_ulong = 0;
        // SAFETY: takes numbers only, and changes this process alone.
        let status = unsafe { libc::prctl(SET_TAGGED_ADDR_CTRL, control, zero, zero, zero) };
        if status == -1 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    /// Prints code and address of the first SIGSEGV; the second, of the same access, then ends the process.
    pub(super) fn tell_faults() -> io::Result<()> {
        // SAFETY: zeros are a valid sigaction: no flags, an empty mask.
        let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
        let handler: extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void) = tell;
        action.sa_sigaction = handler as libc::sighandler_t;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_RESETHAND;
        // SAFETY: the action is complete, and its handler keeps to async-signal-safe calls.
        let status =
            unsafe { libc::sigaction(libc::SIGSEGV, &raw const action, std::ptr::null_mut()) };
        if status == -1 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    extern "C" fn tell(_: libc::c_int, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
        // SAFETY: the kernel gives a valid siginfo to a handler with SA_SIGINFO.
        let code = unsafe { (*info).si_code };
        // SAFETY: as above; SIGSEGV carries an address.
        let address = unsafe { (*info).si_addr() };
        let mut text = *b"code=0000000000000000\naddress=0000000000000000\n";
        let (first, second) = text.split_at_mut(22);
        put_hex(&mut first[5..21], u64::from(code.unsigned_abs()));
        put_hex(&mut second[8..24], address.addr() as u64);
        // SAFETY: write(2) may be called in a handler; the buffer is ours.
        unsafe { libc::write(1, text.as_ptr().cast(), text.len()) };
    }

    /// Formatting without memory or locks: this runs in a signal handler.
    fn put_hex(target: &mut [u8], number: u64) {
        for (place, digit) in target.iter_mut().rev().enumerate() {
            let nibble = (number >> (4 * place) & 0xf) as u8;
            *digit = if nibble < 10 { b'0' + nibble } else { b'a' + nibble - 10 };
        }
    }

    #[cfg(test)]
    mod tests {
        #[test]
        fn numbers_are_written_in_hexadecimal() {
            let mut text = [0; 16];
            super::put_hex(&mut text, 0x0123_4567_89ab_cdef);
            assert_eq!(&text, b"0123456789abcdef");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str =
        "expected=ffff1000\npointer=3\nmemory=a\ncode=0000000000000009\naddress=00000000ffff1000\n";

    #[test]
    fn a_fault_at_the_right_address_is_caught() {
        let (caught, fields) = judge(GOOD, Some(libc::SIGSEGV));

        assert!(caught);
        assert_eq!(fields["si_code"], 9);
        assert_eq!(fields["memory_tag"], 10);
        assert_eq!(fields["address"], "0xffff1000");
    }

    #[test]
    fn other_signals_codes_and_addresses_are_not() {
        assert!(!judge(GOOD, None).0);
        assert!(!judge(GOOD, Some(libc::SIGBUS)).0);
        assert!(!judge(&GOOD.replace("09\n", "01\n"), Some(libc::SIGSEGV)).0);
        assert!(
            !judge(&GOOD.replace("address=00000000ffff1000", "address=0"), Some(libc::SIGSEGV)).0
        );
        assert!(!judge("", Some(libc::SIGSEGV)).0);
    }
}
