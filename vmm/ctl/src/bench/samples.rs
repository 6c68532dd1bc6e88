//! Figures for tests.

use super::figure::{Aim, Better, Bound, Figure, Host, Method, Reference, Setting, Vmm};

pub(super) fn figure(vmm: &str, value: f64) -> Figure {
    Figure {
        bench: "start".to_owned(),
        name: "exec to exit".to_owned(),
        case: "raw, cold".to_owned(),
        vmm: Vmm { name: vmm.to_owned(), version: "1".to_owned(), variant: String::new() },
        value: Some(value),
        cannot: None,
        unit: "instructions".to_owned(),
        better: Better::Less,
        method: Method::Counted,
        supply: None,
        setting: Setting { memory_mib: 256, vcpus: 1, options: String::new() },
        host: Host {
            machine: "emulated".to_owned(),
            kernel: "6.12".to_owned(),
            memory_mib: 4096,
            cpus: 1,
        },
        samples: Vec::new(),
        aim: None,
    }
}

/// One that the VMM cannot do.
pub(super) fn dash(vmm: &str, cannot: &str) -> Figure {
    Figure { value: None, cannot: Some(cannot.to_owned()), ..figure(vmm, 0.0) }
}

/// An aim that is a multiple of another VMM's figure.
pub(super) fn at_most(value: f64, vmm: &str, case: Option<&str>) -> Option<Aim> {
    let of = Reference { vmm: vmm.to_owned(), case: case.map(str::to_owned) };
    Some(Aim { bound: Bound::AtMost, value, of: Some(of) })
}
