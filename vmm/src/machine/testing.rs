//! Machines of fake vCPUs, with real memory and devices.
#![allow(clippy::unwrap_used)]

use std::io::Write;
use std::path::Path;

use tempfile::NamedTempFile;

use super::{Board, Machine};
use crate::config::{
    BootSource, CommandLineOnly, Config, EntropySection, MachineConfig, SerialSection,
};
use crate::console::{Output, Quiesce};
use crate::events::EventLog;
use crate::hypervisor::fake::FakeHypervisor;
use crate::spec::Spec;

/// An arm64 Image of nothing but a header.
pub(crate) fn kernel() -> NamedTempFile {
    let mut image = vec![0; 4096];
    image[16..24].copy_from_slice(&4096u64.to_le_bytes());
    image[24..32].copy_from_slice(&0b1010_u64.to_le_bytes());
    image[56..60].copy_from_slice(b"ARM\x64");
    let mut file = NamedTempFile::new().unwrap();
    file.write_all(&image).unwrap();
    file
}

/// A configuration of 64 MiB, a balloon and an entropy source, with so many vCPUs.
pub(crate) fn config(kernel: &Path, cpus: u32) -> Config {
    let mut config = Config::default();
    config.boot_source =
        Some(BootSource { kernel_image_path: Some(kernel.to_owned()), ..BootSource::default() });
    config.machine_config = Some(MachineConfig {
        vcpu_count: Some(cpus),
        mem_size_mib: Some(64),
        ..MachineConfig::default()
    });
    config.serial = Some(SerialSection::from_flag("none"));
    config.entropy = Some(EntropySection::default());
    config
}

pub(crate) fn spec(config: Config) -> Spec {
    Spec::new(config, CommandLineOnly::default()).unwrap()
}

/// A machine with the vCPUs of this hypervisor.
pub(crate) fn machine(hypervisor: &FakeHypervisor, cpus: u32) -> Machine {
    let kernel = kernel();
    let spec = spec(config(kernel.path(), cpus));
    let board = Board::new(&spec, hypervisor).unwrap();
    Machine::new(board, &spec, Output::nowhere(), Quiesce::default(), EventLog::default()).unwrap()
}
