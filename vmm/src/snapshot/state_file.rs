//! The state file: the state of a VM but for its memory.
//!
//! # Format
//! All numbers are little-endian.
//!
//! | at | bytes | what |
//! |---|---|---|
//! | 0 | 8 | magic |
//! | 8 | 2, 2 | version of the format: major, minor |
//! | 12 | 4 | number of sections, n |
//! | 16 | 16 | id of the snapshot |
//! | 32 | 24 n | table: of each section its kind (4), CRC-32 (4), offset (8) and length (8) |
//! | 32 + 24 n | 4 | CRC-32 of all before |
//! | 36 + 24 n | | the sections in the order of the table, each where the one before ends; the last ends the file |
//!
//! Each section is there once. *Manifest* (1) is JSON, *vCPUs* (2), *interrupt controller* (3), *clock* (4) and
//! *devices* (5) are postcard.

mod check;
mod device;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzz;
mod manifest;
mod sections;

use std::path::Path;

use super::error::{Error, Fault, Role, Version};
use super::id::SnapshotId;
use super::new_file::NewFile;
use super::output::Output;
use super::source::Source;
use crate::hypervisor::state::{ClockState, GicState, VcpuState};
use sections::Sections;

pub use device::{DeviceState, DeviceStates};
pub use manifest::{CpuFeatures, Kind, Manifest};

/// The version of the format. Any change of what is written is a new one.
const VERSION: Version = Version { major: 2, minor: 0 };

/// The state of a VM.
#[derive(Clone, Debug, PartialEq)]
pub struct State {
    /// Of which snapshot.
    pub id: SnapshotId,
    /// What a host must have to restore it.
    pub manifest: Manifest,
    /// The vCPUs, by index.
    pub vcpus: Vec<VcpuState>,
    /// The interrupt controller.
    pub gic: GicState,
    /// The clock.
    pub clock: ClockState,
    /// The devices, by name.
    pub devices: DeviceStates,
}

/// A state file.
#[derive(Debug)]
pub struct StateFile;

impl StateFile {
    pub(super) fn write_to(file: &NewFile, state: &State) -> Result<(), Error> {
        let bytes = Self::encode(state).map_err(|fault| file.error(fault))?;
        file.file().write(&bytes, 0).map_err(|error| file.error(Fault::write(error)))?;
        file.sync()
    }

    /// Reads and checks a state.
    ///
    /// # Errors
    /// When the file cannot be read, is damaged, or is no state file of this version.
    pub fn read(path: &Path) -> Result<State, Error> {
        let source = Source::open(path)?;
        let sections = Sections::read(&source).map_err(|fault| source.error(fault))?;
        decode(&sections).map_err(|fault| source.error(fault))
    }

    /// The bytes of a state.
    ///
    /// # Errors
    /// When it makes no sense.
    pub fn encode(state: &State) -> Result<Vec<u8>, Fault> {
        check::state(state).map_err(|(part, reason)| Fault::Unsavable { part, reason })?;
        Sections {
            id: state.id,
            contents: vec![
                sections::json(sections::MANIFEST, &state.manifest)?,
                sections::postcard(sections::VCPUS, &state.vcpus)?,
                sections::postcard(sections::GIC, &state.gic)?,
                sections::postcard(sections::CLOCK, &state.clock)?,
                sections::postcard(sections::DEVICES, &state.devices)?,
            ],
        }
        .encode()
    }
}

fn decode(sections: &Sections) -> Result<State, Fault> {
    let state = State {
        id: sections.id,
        manifest: sections.decode_json(sections::MANIFEST)?,
        vcpus: sections.decode_list(sections::VCPUS, check::MOST_VCPUS)?,
        gic: sections.decode_postcard(sections::GIC)?,
        clock: sections.decode_postcard(sections::CLOCK)?,
        devices: sections.decode_list(sections::DEVICES, check::MOST_DEVICES)?,
    };
    check::state(&state).map_err(|(part, reason)| Fault::Malformed { part, reason })?;
    Ok(state)
}

/// The role of the file, for messages.
const ROLE: Role = Role::State;

#[cfg(test)]
mod tests;
