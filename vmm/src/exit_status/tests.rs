use std::collections::BTreeSet;
use std::io::ErrorKind;

use super::*;

/// The table of docs/exit-codes.md.
const ALL: [(ExitStatus, u8); 21] = [
    (ExitStatus::Success, 0),
    (ExitStatus::GuestReset, 10),
    (ExitStatus::GuestPanic, 11),
    (ExitStatus::Stopped, 12),
    (ExitStatus::DoctorFailed, 13),
    (ExitStatus::TagStorage, 14),
    (ExitStatus::MemoryFault, 15),
    (ExitStatus::SystemCall, 16),
    (ExitStatus::Usage, 64),
    (ExitStatus::BadImage, 65),
    (ExitStatus::NoInput, 66),
    (ExitStatus::Unavailable, 69),
    (ExitStatus::VmmFault, 70),
    (ExitStatus::CannotCreate, 73),
    (ExitStatus::Io, 74),
    (ExitStatus::NoPermission, 77),
    (ExitStatus::Config, 78),
    (ExitStatus::Hangup, 129),
    (ExitStatus::Interrupted, 130),
    (ExitStatus::Quit, 131),
    (ExitStatus::Terminated, 143),
];

#[test]
fn every_reason_has_its_documented_code() {
    for (status, code) in ALL {
        assert_eq!(status as u8, code, "{status:?}");
        assert_eq!(ExitCode::from(status), ExitCode::from(code), "{status:?}");
    }
}

#[test]
fn the_documented_codes_are_these() {
    let page = include_str!("../../../docs/exit-codes.md");
    // The client's table follows.
    let table = page.split("`tesseractl` |").next().unwrap_or_default();
    let rows = table.lines().filter_map(|line| line.strip_prefix("| ")?.split(" | ").next());
    let documented: BTreeSet<u8> =
        rows.flat_map(|codes| codes.split(", ")).filter_map(|code| code.parse().ok()).collect();

    assert_eq!(documented, ALL.map(|(_, code)| code).into());
}

#[test]
fn no_two_reasons_share_a_code_and_none_is_a_shells() {
    let codes: BTreeSet<u8> = ALL.iter().map(|(_, code)| *code).collect();
    assert_eq!(codes.len(), ALL.len());
    // 1 and 2: failures of the shell itself. 126 and 127: a program that cannot be started.
    for shells in [1, 2, 126, 127] {
        assert!(!codes.contains(&shells), "{shells}");
    }
}

#[test]
fn signals_have_the_codes_that_shells_give_them() {
    for (status, signal) in [
        (ExitStatus::Hangup, libc::SIGHUP),
        (ExitStatus::Interrupted, libc::SIGINT),
        (ExitStatus::Quit, libc::SIGQUIT),
        (ExitStatus::Terminated, libc::SIGTERM),
    ] {
        assert_eq!(i32::from(status as u8), 128 + signal);
    }
}

#[test]
fn an_input_is_forbidden_or_not_there() {
    assert_eq!(ExitStatus::for_input(ErrorKind::PermissionDenied), ExitStatus::NoPermission);
    for kind in [ErrorKind::NotFound, ErrorKind::NotADirectory, ErrorKind::IsADirectory] {
        assert_eq!(ExitStatus::for_input(kind), ExitStatus::NoInput);
    }
}

#[test]
fn an_output_is_forbidden_or_full_or_cannot_be_created() {
    assert_eq!(ExitStatus::for_output(ErrorKind::PermissionDenied), ExitStatus::NoPermission);
    assert_eq!(ExitStatus::for_output(ErrorKind::StorageFull), ExitStatus::Io);
    for kind in [ErrorKind::NotFound, ErrorKind::AddrInUse, ErrorKind::IsADirectory] {
        assert_eq!(ExitStatus::for_output(kind), ExitStatus::CannotCreate);
    }
}
