//! The device tree of any board, read back by another program's reader.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;

use arch::caches::{Cache, CacheTopology, IndexFiles};
use arch::fdt::{MmioNode, Seeds, Tree, room};
use arch::gic::Gic;
use arch::layout::{self, CHUNK, RAM_BASE};
use arch::range::MemoryRange;
use arch::regs::Mpidr;
use arch::units::Bytes;
use fdt::Fdt;
use vm_memory::GuestAddress;

use crate::input::Input;

/// The files of one cache of a host, mostly as Linux has them.
fn cache(input: &mut Input<'_>) -> Option<Cache> {
    let level = input.below(9).to_string();
    let kind = input.one_of(&["Data", "Instruction", "Unified", "Unified", "Other"]);
    let size = match input.u8() {
        0xff => String::from_utf8_lossy(input.take(6)).into_owned(),
        size => format!("{}K\n", u32::from(size) << input.below(16)),
    };
    let number = |input: &mut Input<'_>| u32::from(input.u16()).to_string();
    let (line, sets) = (number(input), number(input));
    let shared = input.one_of(&["0", "0-3", "0-63", ""]);
    let files = IndexFiles {
        level: Some(&level),
        kind: Some(kind),
        size: Some(&size),
        line_size: Some(&line),
        sets: Some(&sets),
        shared: Some(shared),
    };
    Cache::parse(&files).ok()
}

fn caches(input: &mut Input<'_>) -> Option<CacheTopology> {
    let count = input.below(6);
    let caches: Vec<Cache> = (0..count).filter_map(|_| cache(input)).collect();
    let cpus = match input.flag() {
        true => vec![caches.clone(), caches],
        false => vec![caches],
    };
    CacheTopology::new(&cpus).ok()
}

fn cpus(input: &mut Input<'_>) -> Vec<Mpidr> {
    // Large boards cost time, and differ from small ones in their number alone.
    let count = match input.u8() {
        0xff => 513,
        0xfe => 512,
        count => u64::from(count % 20),
    };
    let scattered = input.flag();
    let cpu = |n: u64, input: &mut Input<'_>| match scattered {
        true => input.u64(),
        // KVM's numbering: 16 in Aff0, then Aff1.
        false => 1 << 31 | (n >> 4) << 8 | n & 0xf,
    };
    (0..count).map(|n| Mpidr::new(cpu(n, input))).collect()
}

fn memory(input: &mut Input<'_>) -> Vec<MemoryRange> {
    match input.u8() {
        0xff => (0..input.below(4))
            .map(|n| {
                let base = GuestAddress((n as u64) << 40 | input.u64() >> 24);
                MemoryRange::new(base, Bytes::new(input.u64() >> 24))
            })
            .collect(),
        chunks => {
            vec![MemoryRange::new(RAM_BASE, Bytes::new(u64::from(chunks) * CHUNK.get()))]
        }
    }
}

pub(super) fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let (cpus, memory, caches) = (cpus(&mut input), memory(&mut input), caches(&mut input));
    let gic = match input.u8() {
        0 => Gic::V2,
        1 => Gic::V3 { cpus: input.u32() },
        _ => Gic::V3 { cpus: cpus.len() as u32 },
    };
    let devices = match input.u8() {
        0xff => layout::MAX_VIRTIO_DEVICES,
        devices => u32::from(devices % 8),
    };
    let virtio: Vec<MmioNode> = (0..devices)
        .map(|index| layout::virtio(index).unwrap())
        .map(|(range, spi)| MmioNode { range, spi })
        .collect();
    let initrd = input.flag().then(|| {
        let base = GuestAddress(input.u64() >> 8);
        MemoryRange::new(base, Bytes::new(u64::from(input.u32())))
    });
    let pmu = input.flag();
    let length = usize::from(input.u16()) % 2100;
    // Short inputs make long lines, too.
    let mut line = String::from_utf8_lossy(input.rest()).into_owned();
    while !line.is_empty() && line.len() < length {
        line = line.repeat(2);
    }
    let tree = Tree {
        command_line: &line,
        memory: &memory,
        initrd,
        cpus: &cpus,
        caches: caches.as_ref(),
        pmu,
        gic: &gic,
        serial: MmioNode { range: layout::SERIAL, spi: layout::SERIAL_SPI },
        rtc: MmioNode { range: layout::RTC, spi: layout::RTC_SPI },
        gpio: MmioNode { range: layout::GPIO, spi: layout::GPIO_SPI },
        virtio: &virtio,
        seeds: Seeds { rng: [0xa5; 64], kaslr: 7 },
    };
    let Ok(blob) = tree.build() else { return };
    read_back(&tree, &blob);
    if memory.len() == 1 {
        let room = room(cpus.len() as u32, caches.as_ref());
        assert!(blob.len() as u64 <= room.get(), "{} in {room}", blob.len());
    }
}

/// Finds what the tree was made of.
fn read_back(tree: &Tree<'_>, blob: &[u8]) {
    let fdt = Fdt::new(blob).unwrap();
    assert_eq!(fdt.total_size(), blob.len());
    assert_eq!(fdt.chosen().bootargs(), Some(tree.command_line));

    let affinities: BTreeSet<u64> = tree.cpus.iter().map(|cpu| cpu.affinity()).collect();
    let cpus = fdt.find_node("/cpus").unwrap().children();
    let found: BTreeSet<u64> = cpus
        .filter(|node| node.name.starts_with("cpu@"))
        .map(|node| {
            let reg = node.property("reg").unwrap().value;
            u64::from_be_bytes(reg.try_into().unwrap())
        })
        .collect();
    assert_eq!(found, affinities);

    let named = |prefix: &'static str| {
        fdt.find_node("/").unwrap().children().filter(move |node| node.name.starts_with(prefix))
    };
    let memory: Vec<Vec<u8>> =
        named("memory@").map(|node| node.property("reg").unwrap().value.to_vec()).collect();
    let ranges = tree.memory.iter().filter(|range| !range.size.is_zero());
    let expected: Vec<Vec<u8>> = ranges
        .map(|range| [range.base.0.to_be_bytes(), range.size.get().to_be_bytes()].concat())
        .collect();
    assert_eq!(memory, expected);
    assert_eq!(named("virtio_mmio@").count(), tree.virtio.len());

    let chosen = fdt.find_node("/chosen").unwrap();
    let start = chosen.property("linux,initrd-start").map(|property| property.value.to_vec());
    let base = tree.initrd.map(|range| range.base.0.to_be_bytes().to_vec());
    assert_eq!(start, base);
}

pub(super) fn seeds() -> Vec<Vec<u8>> {
    let line = b"console=ttyS0 panic=-1 quiet";
    let small = [
        &[2, 0, 64, 0, 0, 2, 3, 1][..],
        &[0, 0, 0x90, 0, 0, 0, 0, 0],
        &[9, 0, 0, 0],
        &[1, 0, 0],
        line,
    ];
    let large = [&[0xfe, 0, 200, 0, 0, 2, 128, 0, 1, 0xff, 7][..], line];
    // A level, a kind, a size, a line, sets and who shares it.
    let caches =
        [1, 0, 64, 0, 64, 0, 0, 1, 0, 1, 1, 64, 0, 64, 0, 0, 1, 0, 2, 2, 64, 3, 64, 0, 0, 4, 1];
    let host = [&[4, 0, 64, 3][..], &caches, &[0, 2, 3, 0, 0, 0, 0], line];
    let odd = [&[3, 1][..], &[7; 24], &[0xff, 2], &[9; 32], &[0, 0, 0, 0, 0, 0], line];
    vec![small.concat(), large.concat(), host.concat(), odd.concat()]
}
