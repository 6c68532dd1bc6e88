#![allow(clippy::unwrap_used)]

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use arch::regs::RegId;
use arch::units::Bytes;
use proptest::prelude::*;
use serde_json::Value;
use tempfile::TempDir;

use super::super::error::Part;
use super::super::format;
use super::super::testing::{FakeMemory, state};
use super::*;
use crate::hypervisor::state::{GicRegister, SavedRegisters};

fn example() -> State {
    state(SnapshotId([5; 16]), &FakeMemory::new(2, Bytes::kib(4), true))
}

/// A state file in a directory of its own.
struct File {
    folder: TempDir,
    bytes: Vec<u8>,
}

impl File {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let bytes = StateFile::encode(&example()).unwrap();
        fs::write(folder.path().join("state"), &bytes).unwrap();
        Self { folder, bytes }
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("state")
    }

    fn fault(&self, bytes: &[u8]) -> Fault {
        fs::write(self.path(), bytes).unwrap();
        StateFile::read(&self.path()).unwrap_err().fault
    }

    /// The end of the table's checksum.
    const START: usize = 32 + 5 * 24 + 4;

    /// With a field of the table set, and its checksum right.
    fn with_entry(&self, section: usize, at: usize, field: &[u8]) -> Vec<u8> {
        let mut bytes = self.bytes.clone();
        let at = 32 + section * 24 + at;
        bytes[at..at + field.len()].copy_from_slice(field);
        Self::with_crc(bytes)
    }

    fn with_crc(mut bytes: Vec<u8>) -> Vec<u8> {
        let (end, crc) = (Self::START - 4, format::crc(&bytes[..Self::START - 4]));
        bytes[end..Self::START].copy_from_slice(&crc.to_le_bytes());
        bytes
    }
}

#[test]
fn what_is_written_is_read() {
    let file = File::new();

    assert_eq!(StateFile::read(&file.path()).unwrap(), example());
    assert_eq!(file.folder.path().read_dir().unwrap().count(), 1);
}

#[test]
fn each_bit_matters() {
    let file = File::new();
    let open = fs::File::options().write(true).open(file.path()).unwrap();
    for bit in 0..file.bytes.len() * 8 {
        let byte = file.bytes[bit / 8];
        open.write_all_at(&[byte ^ (1 << (bit % 8))], bit as u64 / 8).unwrap();
        let fault = StateFile::read(&file.path()).unwrap_err().fault;
        open.write_all_at(&[byte], bit as u64 / 8).unwrap();
        let expected = match fault {
            Fault::NotASnapshot { .. } => bit / 8 < 8,
            Fault::Version { .. } => (8..12).contains(&(bit / 8)),
            Fault::Malformed { part: Part::Header, .. } => (12..16).contains(&(bit / 8)),
            Fault::Damaged { part: Part::Table } => (16..File::START).contains(&(bit / 8)),
            Fault::Damaged { part: Part::Section(_) } => bit / 8 >= File::START,
            _ => false,
        };
        assert!(expected, "byte {}: {fault:?}", bit / 8);
    }
}

#[test]
fn a_file_that_is_cut_anywhere_is_refused() {
    let file = File::new();
    for length in 0..file.bytes.len() {
        match file.fault(&file.bytes[..length]) {
            Fault::NotASnapshot { .. } if length < 12 => {}
            Fault::CutShort { .. } if length >= 12 => {}
            fault => panic!("{length}: {fault:?}"),
        }
    }
    let mut longer = file.bytes.clone();
    longer.push(0);
    assert!(matches!(file.fault(&longer), Fault::TooLong { .. }));
}

#[test]
fn what_is_no_state_file_is_refused() {
    let file = File::new();
    assert!(matches!(file.fault(b""), Fault::NotASnapshot { wanted: Role::State }));
    assert!(matches!(file.fault(&[b'{'; 4096]), Fault::NotASnapshot { .. }));
    let memory = b"\x8fTESME\r\n\x01\0\0\0";
    assert!(matches!(file.fault(memory), Fault::OtherRole { found: Role::Memory, .. }));
    for (at, version) in [(8, "3.0"), (10, "2.1")] {
        let mut bytes = file.bytes.clone();
        bytes[at] += 1;
        let text = file.fault(&bytes).to_string();
        assert!(
            text.contains(&format!("version {version}")) && text.contains("2.0 only"),
            "{text}"
        );
    }
}

#[test]
fn tables_that_lie_are_refused() {
    let file = File::new();
    let lies = [
        ("a kind", file.with_entry(0, 0, &9u32.to_le_bytes())),
        ("a kind twice", file.with_entry(1, 0, &1u32.to_le_bytes())),
        ("an offset", file.with_entry(2, 8, &1u64.to_le_bytes())),
        ("the last offset", file.with_entry(2, 8, &u64::MAX.to_le_bytes())),
        ("a length", file.with_entry(3, 16, &u64::MAX.to_le_bytes())),
        ("a length within the limit", file.with_entry(0, 16, &0u64.to_le_bytes())),
    ];
    for (name, bytes) in lies {
        let fault = file.fault(&bytes);
        assert!(matches!(fault, Fault::Malformed { .. }), "{name}: {fault:?}");
    }
    let long = file.with_entry(4, 16, &(1u64 << 20).to_le_bytes());
    assert!(matches!(file.fault(&long), Fault::CutShort { .. }));
    let short = file.with_entry(4, 16, &1u64.to_le_bytes());
    assert!(matches!(file.fault(&short), Fault::TooLong { .. }));
    for count in [0u32, 4, 6, u32::MAX] {
        let mut bytes = file.bytes.clone();
        bytes[12..16].copy_from_slice(&count.to_le_bytes());
        let fault = file.fault(&File::with_crc(bytes));
        assert!(matches!(fault, Fault::Malformed { part: Part::Header, .. }), "{fault:?}");
    }
}

/// Changes a state, and returns why it is not written.
fn refusal(change: impl FnOnce(&mut State)) -> String {
    let mut state = example();
    change(&mut state);
    let fault = StateFile::encode(&state).unwrap_err();
    assert!(matches!(fault, Fault::Unsavable { .. }), "{fault:?}");
    fault.to_string()
}

#[test]
fn registers_that_make_no_sense_are_refused() {
    let register = |change: fn(&mut Vec<u64>, &mut Vec<u8>)| {
        refusal(move |state| {
            let registers = &mut state.vcpus[1].registers;
            let mut ids: Vec<_> = registers.ids().map(RegId::get).collect();
            let mut values = registers.iter().flat_map(|(_, value)| value.to_vec()).collect();
            change(&mut ids, &mut values);
            *registers = SavedRegisters::unchecked(ids, values);
        })
    };
    for (reason, found) in [
        ("vCPU 1: its registers have 287 bytes, and", register(|_, values| values.truncate(287))),
        ("have 289 bytes, and their ids say 288", register(|_, values| values.push(0))),
        ("have 288 bytes, and their ids say 296", register(|ids, _| ids[2] += 1 << 52)),
        ("no register has 512 bytes", register(|ids, _| ids[2] += 6 << 52)),
        ("no register has 32768 bytes", register(|ids, _| ids[2] |= 15 << 52)),
        ("of no family", register(|ids, _| ids[2] &= !(0xff << 56))),
        ("of no family", register(|ids, _| ids[2] |= 1 << 40)),
        ("of no family", register(|ids, _| ids[2] |= 7 << 16)),
        ("is there twice", register(|ids, _| ids[2] -= 2)),
    ] {
        assert!(found.contains(reason), "{found}");
    }
}

#[test]
fn states_that_make_no_sense_are_refused() {
    let gic_register = GicRegister { group: 5, attribute: 0, value: 1 << 32 };
    for (reason, found) in [
        ("1 to 512 vCPUs, and there are 0", refusal(|state| state.vcpus.clear())),
        ("there are 513", refusal(|state| state.vcpus = vec![state.vcpus[0].clone(); 513])),
        (
            "it has 0 registers",
            refusal(|state| state.vcpus[0].registers = SavedRegisters::default()),
        ),
        ("no state 6", refusal(|state| state.vcpus[0].mp_state = 6)),
        ("vector lengths", refusal(|state| state.vcpus[0].sve_lengths = None)),
        ("vector lengths", refusal(|state| state.manifest.cpu_features.sve = false)),
        ("no GICv4", refusal(|state| state.manifest.gic_version = 4)),
        ("it is of a GICv2, not v3", refusal(|state| state.gic.version = 2)),
        ("no registers of group 4", refusal(|state| state.gic.registers[0].group = 4)),
        ("more than 32 bits", refusal(|state| state.gic.registers.push(gic_register))),
        ("twice", refusal(|state| state.gic.registers.extend(state.gic.registers.clone()))),
        ("pages of 8 KiB", refusal(|state| state.manifest.page_size = 8192)),
        ("no guest has pages of 0 B", refusal(|state| state.manifest.guest_page_size = Some(0))),
        ("of memory", refusal(|state| state.manifest.memory_size = 0)),
        ("of memory", refusal(|state| state.manifest.memory_size += 1)),
        ("of memory", refusal(|state| state.manifest.memory_size = u64::MAX << 21)),
        ("stands still", refusal(|state| state.manifest.counter_frequency = 0)),
        ("counts at 1 Hz", refusal(|state| state.clock.frequency = 1)),
        ("no object", refusal(|state| state.manifest.config = Value::Null)),
    ] {
        assert!(found.contains(reason), "{reason}: {found}");
    }
}

#[test]
fn a_gicv2_has_registers_of_its_own() {
    let mut state = example();
    (state.manifest.gic_version, state.gic.version) = (2, 2);
    state.gic.registers = vec![GicRegister { group: 2, attribute: 1 << 32, value: 1 }];
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("state");

    fs::write(&path, StateFile::encode(&state).unwrap()).unwrap();

    assert_eq!(StateFile::read(&path).unwrap(), state);
    state.vcpus = vec![state.vcpus[0].clone(); 9];
    let fault = StateFile::encode(&state).unwrap_err();
    assert!(fault.to_string().contains("1 to 8 vCPUs"), "{fault:?}");
}

#[test]
fn as_many_vcpus_as_there_can_be_fit() {
    let mut state = example();
    let registers = &mut state.vcpus[0].registers;
    *registers = SavedRegisters::default();
    (0..50).for_each(|n| registers.push(RegId::new(0x6080_0000_0015_0000 + n)).fill(1));
    (0..400).for_each(|n| registers.push(RegId::new(0x6030_0000_0013_0000 + n)).fill(0xff));
    state.vcpus = vec![state.vcpus[0].clone(); 512];
    let most = (0..4096 + 128 * 512).map(|attribute| {
        let (attribute, value) = (attribute | 0xffff_ffff << 32, u64::MAX);
        GicRegister { group: 6, attribute, value }
    });
    state.gic.registers = most.collect();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("state");

    fs::write(&path, StateFile::encode(&state).unwrap()).unwrap();

    assert!(StateFile::read(&path).unwrap() == state);
}

#[test]
fn a_balloon_of_scattered_pages_fits_and_more_does_not() {
    let mut state = example();
    state.manifest.memory_size = 64 << 30;
    let balloon = |length: usize| {
        let pages = vec![[0xaau8; 8]; length / 8];
        DeviceStates::from([("balloon".to_owned(), DeviceState::encode(&pages).unwrap())])
    };
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("state");

    // A bit for each of its pages.
    state.devices = balloon(2 << 20);
    fs::write(&path, StateFile::encode(&state).unwrap()).unwrap();
    assert!(StateFile::read(&path).unwrap() == state);
    state.devices = balloon(4 << 20);
    let fault = StateFile::encode(&state).unwrap_err();
    assert!(fault.to_string().contains("at most"), "{fault:?}");
}

/// A file with these bytes for a section, and all checksums right.
fn with_section(kind: sections::SectionKind, bytes: &[u8]) -> Result<State, Fault> {
    let mut sections = Sections {
        id: example().id,
        contents: vec![
            sections::json(sections::MANIFEST, &example().manifest).unwrap(),
            sections::postcard(sections::VCPUS, &example().vcpus).unwrap(),
            sections::postcard(sections::GIC, &example().gic).unwrap(),
            sections::postcard(sections::CLOCK, &example().clock).unwrap(),
            sections::postcard(sections::DEVICES, &example().devices).unwrap(),
        ],
    };
    let place = sections.contents.iter_mut().find(|(found, _)| *found == kind).unwrap();
    place.1 = bytes.to_vec();
    decode(&sections)
}

#[test]
fn more_elements_than_a_vm_has_are_refused_before_they_are_read() {
    for (kind, most) in [
        (sections::VCPUS, check::MOST_VCPUS as u32),
        (sections::DEVICES, check::MOST_DEVICES as u32),
    ] {
        let counting = |count: u32| postcard::to_allocvec(&count).unwrap();
        let reason = |count| with_section(kind, &counting(count)).unwrap_err().to_string();

        assert!(reason(most + 1).contains("elements, and a VM has"), "{}", reason(most + 1));
        // Elements are missing.
        assert!(!reason(most).contains("elements, and a VM has"), "{}", reason(most));
    }
}

#[test]
fn contents_that_make_no_sense_are_refused() {
    let json = |value: &Value| serde_json::to_vec(value).unwrap();
    let mut manifest = serde_json::to_value(example().manifest).unwrap();
    assert!(with_section(sections::MANIFEST, &json(&manifest)).is_ok());
    manifest["more"] = Value::Null;
    let mut clock = postcard::to_allocvec(&example().clock).unwrap();
    clock.push(0);
    for (kind, bytes) in [
        (sections::MANIFEST, json(&manifest)),
        (sections::MANIFEST, b"{}".to_vec()),
        (sections::MANIFEST, vec![b'['; 1 << 20]),
        (sections::DEVICES, Vec::new()),
        (sections::DEVICES, vec![0, 0]),
        (sections::DEVICES, vec![1, 1, b'a', 200, 1]),
        (sections::VCPUS, Vec::new()),
        // As many vCPUs as a number can say.
        (sections::VCPUS, vec![0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1]),
        (sections::GIC, vec![3, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1]),
        (sections::CLOCK, clock),
        (sections::CLOCK, vec![1]),
    ] {
        let fault = with_section(kind, &bytes).unwrap_err();
        assert!(matches!(fault, Fault::Malformed { .. }), "{kind:?}: {fault:?}");
    }
}

proptest! {
    #[test]
    fn any_section_is_read_or_refused(
        which in 0usize..4,
        bytes: Vec<u8>,
        at: prop::sample::Index,
        byte: u8,
    ) {
        let kinds = [sections::VCPUS, sections::GIC, sections::CLOCK, sections::DEVICES];
        let _ = with_section(kinds[which], &bytes);
        let mut right = match which {
            0 => postcard::to_allocvec(&example().vcpus).unwrap(),
            1 => postcard::to_allocvec(&example().gic).unwrap(),
            2 => postcard::to_allocvec(&example().clock).unwrap(),
            _ => postcard::to_allocvec(&example().devices).unwrap(),
        };
        let at = at.index(right.len());
        right[at] = byte;
        if let Ok(state) = with_section(kinds[which], &right) {
            prop_assert!(check::state(&state).is_ok());
        }
    }
}
