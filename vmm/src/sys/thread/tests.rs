#![allow(clippy::unwrap_used)]

use std::fs;
use std::sync::mpsc::channel;

use super::*;

const STACK: usize = 64 << 10;

/// The signals that the calling thread blocks: bit 0 is signal 1.
fn blocked() -> u64 {
    let status = fs::read_to_string("/proc/thread-self/status").unwrap();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigBlk:")).unwrap();
    u64::from_str_radix(mask.trim(), 16).unwrap()
}

fn bit(signal: libc::c_int) -> u64 {
    1 << (signal - 1)
}

fn in_a_thread() -> u64 {
    let (sender, receiver) = channel();
    let thread = spawn(Role::Disk, "test", STACK, move || sender.send(blocked()).unwrap()).unwrap();
    thread.join().unwrap();
    receiver.recv().unwrap()
}

#[test]
fn a_thread_takes_none_of_the_signals_that_end_a_program() {
    let mask = in_a_thread();
    for signal in
        [libc::SIGHUP, libc::SIGINT, libc::SIGQUIT, libc::SIGTERM, libc::SIGUSR1, libc::SIGALRM]
    {
        assert_ne!(mask & bit(signal), 0, "{signal} is not blocked: {mask:x}");
    }
}

#[test]
fn a_threads_own_faults_still_reach_their_handlers() {
    let mask = in_a_thread();
    for signal in SYNCHRONOUS {
        assert_eq!(mask & bit(signal), 0, "{signal} is blocked: {mask:x}");
    }
}

#[test]
fn a_scoped_thread_is_no_different() {
    let free = in_a_thread();
    let scoped = std::thread::scope(|scope| {
        let (sender, receiver) = channel();
        let body = move || sender.send(blocked()).unwrap();
        spawn_scoped(scope, Role::Disk, "test", STACK, body).unwrap().join().unwrap();
        receiver.recv().unwrap()
    });
    assert_eq!(scoped, free);
}

#[test]
fn the_caller_keeps_its_mask_and_the_thread_has_its_name() {
    let before = blocked();
    let name = || std::thread::current().name().map(str::to_owned);
    let (sender, receiver) = channel();
    spawn(Role::Disk, "named", STACK, move || sender.send(name()).unwrap())
        .unwrap()
        .join()
        .unwrap();
    assert_eq!(receiver.recv().unwrap().as_deref(), Some("named"));
    assert_eq!(blocked(), before);
}
