//! A record of any length and chunks, with a right checksum.

use arch::layout::CHUNK as CHUNK_SIZE;
use arch::units::Bytes;

use super::super::id::SnapshotId;
use super::super::memory_file::About;
use super::{START, VERSION, decode, encode};
use crate::snapshot::error::Role;
use crate::snapshot::format;

/// The chunks that there are, and what follows the start of the file.
pub(crate) fn working_set(data: &[u8]) {
    let (&chunks, rest) = data.split_first().unwrap_or((&0, data));
    let size = Bytes::new((u64::from(chunks) + 1) * CHUNK_SIZE.get());
    let id = SnapshotId([7; 16]);
    let about = About { id, base: None, size, page_size: Bytes::kib(4), tagged: true };
    let mut file = format::start(Role::WorkingSet, VERSION);
    file.extend(rest);
    file.extend(format::crc(&file).to_le_bytes());
    if let Ok(list) = decode(&file, &about) {
        assert!(list.iter().all(|chunk| *chunk < about.chunks()));
        assert_eq!(encode(id, &list), file);
    }
}

pub(crate) fn working_set_seeds() -> Vec<Vec<u8>> {
    let crc = 4;
    [&[][..], &[0, 2, 1], &[9; 20]]
        .map(|chunks| {
            let file = encode(SnapshotId([7; 16]), chunks);
            [&[4], &file[START..file.len() - crc]].concat()
        })
        .to_vec()
}
