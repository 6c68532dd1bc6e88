#![allow(clippy::unwrap_used)]

use std::io::{self, ErrorKind};

use super::*;
use crate::exit_status::ExitStatus;
use crate::sys::unix_socket;
use crate::vcpu::{self, Fault, Unhandled, VcpuExit};
use crate::{config, console, spec};

fn io_error(kind: ErrorKind) -> io::Error {
    io::Error::from(kind)
}

fn config_read(kind: ErrorKind) -> Error {
    config::Error::Read { path: "vm.json".into(), source: io_error(kind) }.into()
}

fn console_open(kind: ErrorKind) -> Error {
    let source = io_error(kind);
    console::Error::Open { path: "out".into(), hint: "", source }.into()
}

/// Each reason for which a socket cannot be had.
fn socket_errors() -> [(unix_socket::Error, ExitStatus); 6] {
    use unix_socket::Error as Socket;
    let path = || std::path::PathBuf::from("sock");
    let create = |kind| Socket::Create { path: path(), source: io_error(kind) };
    let forbidden = || io_error(ErrorKind::PermissionDenied);
    [
        (Socket::InUse(path()), ExitStatus::CannotCreate),
        (Socket::Occupied(path()), ExitStatus::CannotCreate),
        (Socket::TooLong { path: path(), length: 200 }, ExitStatus::CannotCreate),
        (create(ErrorKind::NotFound), ExitStatus::CannotCreate),
        (create(ErrorKind::PermissionDenied), ExitStatus::NoPermission),
        (Socket::Replace { path: path(), source: forbidden() }, ExitStatus::NoPermission),
    ]
}

#[test]
fn every_error_has_its_documented_status() {
    use ErrorKind::{NotFound, PermissionDenied, StorageFull};
    let parse = serde_json::from_str::<u8>("x").unwrap_err();
    let path = std::path::PathBuf::from("vm.json");
    let table: Vec<(Error, ExitStatus)> = vec![
        (config_read(NotFound), ExitStatus::NoInput),
        (config_read(PermissionDenied), ExitStatus::NoPermission),
        (config::Error::TooLarge { path: path.clone(), limit: 1 }.into(), ExitStatus::Config),
        (config::Error::Parse { path, source: parse }.into(), ExitStatus::Config),
        (spec::Error::NoKernel.into(), ExitStatus::Config),
        (Error::NotArm64, ExitStatus::Unavailable),
        (console_open(NotFound), ExitStatus::CannotCreate),
        (console_open(PermissionDenied), ExitStatus::NoPermission),
        (console_open(StorageFull), ExitStatus::Io),
        (console::Error::Stdio(io_error(NotFound)).into(), ExitStatus::Io),
        (console::Error::Event(io_error(NotFound)).into(), ExitStatus::Unavailable),
        (Error::Terminal(io_error(NotFound)), ExitStatus::Io),
        (Error::Events(io_error(NotFound)), ExitStatus::Unavailable),
        (Error::Loop(event_manager::Error::InvalidCapacity), ExitStatus::Unavailable),
        (vcpu::Error::Stuck { vcpu: 0 }.into(), ExitStatus::Unavailable),
    ];
    let console =
        socket_errors().map(|(error, status)| (console::Error::from(error).into(), status));
    let control = socket_errors().map(|(error, status)| (error.into(), status));
    for (error, status) in table.into_iter().chain(console).chain(control) {
        assert_eq!(error.status(), status, "{error:?}");
    }
}

#[test]
fn every_way_a_vm_ends_has_its_documented_status() {
    let what = Unhandled { what: "odd exit".to_owned(), address: None };
    let fault = Fault { vcpu: 1, what, registers: None };
    let what = Unhandled { what: "no page".to_owned(), address: None };
    let no_page = Fault { vcpu: 0, what, registers: None };
    let full = || io_error(ErrorKind::StorageFull);
    for (reason, status, said) in [
        (ExitReason::Guest(VcpuExit::PowerOff), ExitStatus::Success, ""),
        (ExitReason::Guest(VcpuExit::Reset), ExitStatus::GuestReset, "reset"),
        (ExitReason::Guest(VcpuExit::GuestPanic), ExitStatus::GuestPanic, "panicked"),
        (
            ExitReason::Guest(VcpuExit::Fault(Box::new(fault))),
            ExitStatus::VmmFault,
            "vCPU 1 stopped: odd exit",
        ),
        (
            ExitReason::Guest(VcpuExit::MemoryFault(Box::new(no_page))),
            ExitStatus::MemoryFault,
            "cannot give a page",
        ),
        (ExitReason::Stopped, ExitStatus::Stopped, ""),
        (ExitReason::Signal(ExitStatus::Terminated), ExitStatus::Terminated, ""),
        (ExitReason::OutputLost(full()), ExitStatus::Io, "console output cannot be written"),
        (ExitReason::NoEvents(full()), ExitStatus::VmmFault, "events"),
        (ExitReason::Exhausted("x".to_owned()), ExitStatus::TagStorage, "--on-exhausted"),
        (ExitReason::Unreserved("x".to_owned()), ExitStatus::TagStorage, "any more"),
    ] {
        let (code, message) = reason.report();
        assert_eq!(code, status, "{reason:?}");
        assert_eq!(message.is_some(), !said.is_empty(), "{message:?}");
        assert!(message.unwrap_or_default().contains(said), "{reason:?}");
    }
}

#[test]
fn the_first_to_end_the_vm_counts() {
    let shutdown = ShutdownRequest::default();
    shutdown.with(ExitReason::Stopped);
    shutdown.clone().with(ExitReason::Guest(VcpuExit::PowerOff));
    assert!(matches!(shutdown.take(), Some(ExitReason::Stopped)));
}

#[cfg(not(target_arch = "aarch64"))]
#[test]
fn a_machine_that_is_not_arm64_is_named_once_the_rest_makes_sense() {
    let nonsense = run(&RunArgs::default()).unwrap_err();
    assert_eq!(nonsense.status(), ExitStatus::Config);
    let args = RunArgs { kernel: Some("Image".into()), ..RunArgs::default() };
    assert!(matches!(run(&args), Err(Error::NotArm64)));
}

#[test]
fn what_keeps_a_machine_from_being_made_has_its_documented_status() {
    use crate::memory::LoadError;
    use crate::{hypervisor, machine};
    use arch::layout;
    use arch::units::Bytes;
    let kvm_open = |kind| hypervisor::Error::Open { hint: "", source: io_error(kind) };
    let place = LoadError::Place { path: "Image".into(), source: layout::Error::InitrdEmpty };
    let longer = LoadError::Longer { path: "Image".into(), said: Bytes::mib(1) };
    let fdt = arch::fdt::Error::TooLarge { size: Bytes::mib(3) };
    let too_many = hypervisor::Error::TooManyCpus { asked: 9, max: 8, limit: "GICv2" };
    let table: Vec<(machine::Error, ExitStatus)> = vec![
        (kvm_open(ErrorKind::PermissionDenied).into(), ExitStatus::NoPermission),
        (kvm_open(ErrorKind::NotFound).into(), ExitStatus::Unavailable),
        (hypervisor::Error::MteMissing("KVM_CAP_ARM_MTE").into(), ExitStatus::Unavailable),
        (hypervisor::Error::NoGic.into(), ExitStatus::Unavailable),
        (too_many.into(), ExitStatus::Unavailable),
        (place.into(), ExitStatus::BadImage),
        (longer.into(), ExitStatus::BadImage),
        (fdt.into(), ExitStatus::VmmFault),
        (machine::Error::Seeds(rustix::io::Errno::NOSYS), ExitStatus::Unavailable),
        (vcpu::Error::Stuck { vcpu: 0 }.into(), ExitStatus::Unavailable),
    ];
    for (error, status) in table {
        let error = Error::from(error);
        assert_eq!(error.status(), status, "{error:?}");
    }
}
