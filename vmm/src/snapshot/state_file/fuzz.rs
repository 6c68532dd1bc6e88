//! Sections of any bytes with right checksums.
#![allow(clippy::unwrap_used)]

use arch::units::Bytes;

use super::super::format;
use super::super::testing::{FakeMemory, state as example};
use super::sections::{
    CLOCK, DEVICES, GIC, MANIFEST, SectionKind, Sections, TABLE_END, VCPUS, json, postcard,
};
use super::{SnapshotId, StateFile};
use crate::fuzz::scratch::with_file;

const KINDS: [SectionKind; 5] = [MANIFEST, VCPUS, GIC, CLOCK, DEVICES];
/// Of a checksum.
const CRC: usize = 4;

/// Changes of header and table, and the sections, each but the last behind its length of two bytes.
pub(crate) fn state(data: &[u8]) {
    let (&changes, mut rest) = data.split_first().unwrap_or((&0, data));
    let mut take = |length: usize| {
        let (taken, left) = rest.split_at(length.min(rest.len()));
        rest = left;
        taken
    };
    let changes = take(2 * usize::from(changes % 4)).to_vec();
    let mut contents = Vec::new();
    for kind in KINDS {
        let length = match kind == DEVICES {
            true => usize::MAX,
            false => {
                let length = take(2);
                length.iter().rev().fold(0, |length, byte| length << 8 | usize::from(*byte))
            }
        };
        contents.push((kind, take(length).to_vec()));
    }
    let Ok(mut file) = (Sections { id: SnapshotId([5; 16]), contents }).encode() else { return };
    for change in changes.chunks_exact(2) {
        file[usize::from(change[0]) % (TABLE_END - CRC)] = change[1];
    }
    let crc = format::crc(&file[..TABLE_END - CRC]);
    file[TABLE_END - CRC..TABLE_END].copy_from_slice(&crc.to_le_bytes());

    let Ok(state) = with_file(&file, StateFile::read) else { return };
    let again = StateFile::encode(&state).unwrap();
    let mut again = with_file(&again, StateFile::read).unwrap();
    // Numbers with a fraction are read as well as they can be, and a configuration has none.
    again.manifest.config.clone_from(&state.manifest.config);
    assert_eq!(again, state);
}

pub(crate) fn state_seeds() -> Vec<Vec<u8>> {
    let memory = FakeMemory::new(2, Bytes::kib(4), true);
    let example = example(SnapshotId([5; 16]), &memory);
    let sections = [
        json(MANIFEST, &example.manifest).unwrap().1,
        postcard(VCPUS, &example.vcpus).unwrap().1,
        postcard(GIC, &example.gic).unwrap().1,
        postcard(CLOCK, &example.clock).unwrap().1,
    ];
    let devices = postcard(DEVICES, &example.devices).unwrap().1;
    let framed = |section: &Vec<u8>| {
        let length = (section.len() as u16).to_le_bytes();
        [&length[..], section].concat()
    };
    let sections: Vec<u8> = sections.iter().flat_map(framed).chain(devices).collect();
    [&[0][..], &[1, 12, 4], &[1, 40, 1], &[2, 32, 2, 56, 1]]
        .map(|changes| [changes, &sections].concat())
        .to_vec()
}
