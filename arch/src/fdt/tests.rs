#![allow(clippy::unwrap_used)]

use fdt::Fdt;
use fdt::node::FdtNode;
use proptest::prelude::*;
use vm_memory::GuestAddress;

use super::*;
use crate::caches::{Cache, IndexFiles};
use crate::layout;

const V3: Gic = Gic::V3 { cpus: 2 };

fn mpidrs(count: u64) -> Vec<Mpidr> {
    // KVM's numbering: 16 in Aff0, then Aff1 (vcpu reset_mpidr).
    (0..count).map(|n| Mpidr::new(1 << 31 | (n >> 4) << 8 | n & 0xf)).collect()
}

fn tree<'a>(cpus: &'a [Mpidr], gic: &'a Gic) -> Tree<'a> {
    const MEMORY: &[MemoryRange] = &[MemoryRange::new(layout::RAM_BASE, Bytes::mib(3584))];
    Tree {
        command_line: "console=ttyS0 panic=-1",
        memory: MEMORY,
        initrd: Some(MemoryRange::new(GuestAddress(0x8224_0000), Bytes::new(12345))),
        cpus,
        caches: None,
        pmu: false,
        gic,
        serial: MmioNode { range: layout::SERIAL, spi: layout::SERIAL_SPI },
        rtc: MmioNode { range: layout::RTC, spi: layout::RTC_SPI },
        gpio: MmioNode { range: layout::GPIO, spi: layout::GPIO_SPI },
        virtio: &[],
        seeds: Seeds { rng: [0xa5; 64], kaslr: 0x0123_4567_89ab_cdef },
    }
}

fn blob(cpus: u64, gic: Gic) -> Vec<u8> {
    tree(&mpidrs(cpus), &gic).build().unwrap()
}

fn value<'a>(node: FdtNode<'_, 'a>, name: &str) -> &'a [u8] {
    node.property(name).unwrap_or_else(|| panic!("{} has no {name}", node.name)).value
}

fn cells(node: FdtNode<'_, '_>, name: &str) -> Vec<u32> {
    value(node, name)
        .chunks_exact(4)
        .map(|cell| u32::from_be_bytes(cell.try_into().unwrap()))
        .collect()
}

fn texts(node: FdtNode<'_, '_>, name: &str) -> Vec<String> {
    let list = std::str::from_utf8(value(node, name)).unwrap();
    list.trim_end_matches('\0').split('\0').map(str::to_owned).collect()
}

#[test]
fn the_root_names_the_machine_and_its_interrupt_controller() {
    let blob = blob(2, V3);
    let fdt = Fdt::new(&blob).unwrap();
    let root = fdt.find_node("/").unwrap();

    assert_eq!(fdt.total_size(), blob.len());
    assert_eq!(texts(root, "compatible"), ["linux,dummy-virt"]);
    assert_eq!(cells(root, "#address-cells"), [2]);
    assert_eq!(cells(root, "#size-cells"), [2]);
    let gic = fdt.find_phandle(cells(root, "interrupt-parent")[0]).unwrap();
    assert_eq!(gic.name, "interrupt-controller@8000000");
}

#[test]
fn chosen_hands_over_what_the_boot_needs() {
    let blob = blob(2, V3);
    let fdt = Fdt::new(&blob).unwrap();
    let chosen = fdt.find_node("/chosen").unwrap();

    assert_eq!(fdt.chosen().bootargs(), Some("console=ttyS0 panic=-1"));
    assert_eq!(fdt.chosen().stdout().unwrap().name, "serial@10000000");
    assert_eq!(cells(chosen, "linux,initrd-start"), [0, 0x8224_0000]);
    assert_eq!(cells(chosen, "linux,initrd-end"), [0, 0x8224_0000 + 12345]);
    assert_eq!(value(chosen, "rng-seed"), [0xa5; 64]);
    assert_eq!(cells(chosen, "kaslr-seed"), [0x0123_4567, 0x89ab_cdef]);
}

#[test]
fn without_an_initrd_chosen_mentions_none() {
    let cpus = mpidrs(2);
    let blob = Tree { initrd: None, ..tree(&cpus, &V3) }.build().unwrap();

    let chosen_node = Fdt::new(&blob).unwrap();
    let chosen = chosen_node.find_node("/chosen").unwrap();

    assert!(chosen.properties().all(|property| !property.name.starts_with("linux,initrd")));
}

#[test]
fn memory_is_one_node_a_range() {
    let cpus = mpidrs(2);
    let ranges = [
        MemoryRange::new(GuestAddress(0x8000_0000), Bytes::gib(1)),
        MemoryRange::new(GuestAddress(0x2_0000_0000), Bytes::ZERO),
        MemoryRange::new(GuestAddress(0x1_0000_0000), Bytes::gib(5)),
    ];
    let blob = Tree { memory: &ranges, ..tree(&cpus, &V3) }.build().unwrap();
    let fdt = Fdt::new(&blob).unwrap();

    let nodes: Vec<_> = fdt.all_nodes().filter(|node| node.name.starts_with("memory@")).collect();

    assert_eq!(nodes.len(), 2);
    assert_eq!(
        cells(fdt.find_node("/memory@80000000").unwrap(), "reg"),
        [0, 0x8000_0000, 0, 0x4000_0000]
    );
    assert_eq!(cells(fdt.find_node("/memory@100000000").unwrap(), "reg"), [1, 0, 1, 0x4000_0000]);
    assert!(nodes.iter().all(|node| texts(*node, "device_type") == ["memory"]));
}

#[test]
fn each_cpu_carries_the_affinity_it_was_given() {
    let cpus = [Mpidr::new(0x8000_0000), Mpidr::new(0x12_c103_0201)];
    let blob = tree(&cpus, &V3).build().unwrap();
    let fdt = Fdt::new(&blob).unwrap();

    let first = fdt.find_node("/cpus/cpu@0").unwrap();
    let second = fdt.find_node("/cpus/cpu@1200030201").unwrap();

    assert_eq!(cells(fdt.find_node("/cpus").unwrap(), "#address-cells"), [2]);
    assert_eq!(cells(fdt.find_node("/cpus").unwrap(), "#size-cells"), [0]);
    assert_eq!(cells(first, "reg"), [0, 0]);
    assert_eq!(cells(second, "reg"), [0x12, 0x0003_0201]);
    for cpu in [first, second] {
        assert_eq!(texts(cpu, "device_type"), ["cpu"]);
        assert_eq!(texts(cpu, "compatible"), ["arm,armv8"]);
        assert_eq!(texts(cpu, "enable-method"), ["psci"]);
    }
}

/// L1 and L2 of each CPU's own, a shared L3.
fn server() -> CacheTopology {
    server_with("0-3")
}

/// The same, with these CPUs at its third level.
fn server_with(third: &str) -> CacheTopology {
    let cache = |level, kind, size, shared| {
        Cache::parse(&IndexFiles {
            level: Some(level),
            kind: Some(kind),
            size: Some(size),
            line_size: Some("64"),
            sets: Some("256"),
            shared: Some(shared),
        })
        .unwrap()
    };
    let caches = vec![
        cache("1", "Data", "64K", "0"),
        cache("1", "Instruction", "32K", "0"),
        cache("2", "Unified", "1024K", "0"),
        cache("3", "Unified", "8192K", third),
    ];
    CacheTopology::new(&[caches]).unwrap()
}

#[test]
fn the_first_level_of_caches_is_in_the_cpu_and_leads_to_the_others() {
    let (cpus, caches) = (mpidrs(2), server());
    let blob = Tree { caches: Some(&caches), ..tree(&cpus, &V3) }.build().unwrap();
    let fdt = Fdt::new(&blob).unwrap();

    for (cpu, l2) in
        [("/cpus/cpu@0", "/cpus/cpu@0/l2-cache"), ("/cpus/cpu@1", "/cpus/cpu@1/l2-cache")]
    {
        let cpu = fdt.find_node(cpu).unwrap();
        assert_eq!(cells(cpu, "d-cache-size"), [64 << 10]);
        assert_eq!(cells(cpu, "d-cache-line-size"), [64]);
        assert_eq!(cells(cpu, "d-cache-sets"), [256]);
        assert_eq!(cells(cpu, "i-cache-size"), [32 << 10]);
        assert!(cpu.property("cache-unified").is_none());
        let own = fdt.find_node(l2).unwrap();
        assert_eq!(cells(cpu, "next-level-cache"), cells(own, "phandle"));
        assert_eq!(texts(own, "compatible"), ["cache"]);
        assert_eq!(cells(own, "cache-level"), [2]);
        assert_eq!(cells(own, "cache-size"), [1 << 20]);
        assert!(value(own, "cache-unified").is_empty());
        let shared = fdt.find_phandle(cells(own, "next-level-cache")[0]).unwrap();
        assert_eq!((shared.name, cells(shared, "cache-level")), ("l3-cache", vec![3]));
        assert!(shared.property("next-level-cache").is_none());
    }
}

#[test]
#[cfg_attr(miri, ignore = "minutes: 512 CPUs, and no unsafe code")]
fn every_cpu_has_caches_of_its_own() {
    let (cpus, caches) = (mpidrs(512), server());
    let gic = Gic::V3 { cpus: 512 };
    let blob = Tree { caches: Some(&caches), ..tree(&cpus, &gic) }.build().unwrap();
    let fdt = Fdt::new(&blob).unwrap();

    let second: HashSet<u32> = fdt
        .all_nodes()
        .filter(|node| node.name == "l2-cache")
        .map(|node| cells(node, "phandle")[0])
        .collect();

    assert_eq!(second.len(), 512);
    assert_eq!(fdt.all_nodes().filter(|node| node.name == "l3-cache").count(), 1);
    assert_eq!(fdt.cpus().count(), 512);
}

#[test]
#[cfg_attr(miri, ignore = "minutes: 512 CPUs, and no unsafe code")]
fn every_cache_has_a_handle_of_its_own() {
    let (cpus, caches) = (mpidrs(512), server_with("0"));
    let gic = Gic::V3 { cpus: 512 };
    let blob = Tree { caches: Some(&caches), ..tree(&cpus, &gic) }.build().unwrap();
    let fdt = Fdt::new(&blob).unwrap();

    let handles = fdt.all_nodes().filter_map(|node| node.property("phandle"));
    let handles: Vec<_> = handles.map(|handle| handle.value.to_vec()).collect();

    let apart: HashSet<_> = handles.iter().collect();
    assert_eq!(apart.len(), handles.len());
    assert!(handles.len() > 1024, "{}", handles.len());
}

#[test]
fn without_caches_a_cpu_mentions_none() {
    let blob = blob(1, Gic::V3 { cpus: 1 });
    let fdt = Fdt::new(&blob).unwrap();

    let cpu = fdt.find_node("/cpus/cpu@0").unwrap();

    assert!(cpu.properties().all(|property| !property.name.contains("cache")));
}

#[test]
fn the_hypervisor_is_kvm() {
    let blob = blob(1, Gic::V3 { cpus: 1 });
    let fdt = Fdt::new(&blob).unwrap();

    assert_eq!(texts(fdt.find_node("/hypervisor").unwrap(), "compatible"), ["linux,kvm"]);
}

#[test]
fn psci_is_called_by_hvc() {
    let blob = blob(1, Gic::V3 { cpus: 1 });
    let fdt = Fdt::new(&blob).unwrap();
    let psci = fdt.find_node("/psci").unwrap();

    assert_eq!(texts(psci, "compatible"), ["arm,psci-1.0", "arm,psci-0.2"]);
    assert_eq!(texts(psci, "method"), ["hvc"]);
}

#[test]
fn the_timer_of_a_gicv3_has_no_cpu_mask() {
    let blob = blob(2, V3);
    let fdt = Fdt::new(&blob).unwrap();
    let timer = fdt.find_node("/timer").unwrap();

    assert_eq!(texts(timer, "compatible"), ["arm,armv8-timer"]);
    assert_eq!(cells(timer, "interrupts"), [1, 13, 8, 1, 14, 8, 1, 11, 8, 1, 10, 8]);
    assert!(value(timer, "always-on").is_empty());
}

#[test]
fn the_timer_of_a_gicv2_names_every_cpu() {
    let blob = blob(4, Gic::V2);
    let fdt = Fdt::new(&blob).unwrap();

    let interrupts = cells(fdt.find_node("/timer").unwrap(), "interrupts");

    assert_eq!(interrupts, [1, 13, 0xf08, 1, 14, 0xf08, 1, 11, 0xf08, 1, 10, 0xf08]);
}

#[test]
#[cfg_attr(miri, ignore = "minutes: 512 CPUs, and no unsafe code")]
fn a_gicv3_has_one_region_of_redistributors() {
    let blob = blob(512, Gic::V3 { cpus: 512 });
    let fdt = Fdt::new(&blob).unwrap();
    let gic = fdt.find_node("/interrupt-controller@8000000").unwrap();

    assert_eq!(texts(gic, "compatible"), ["arm,gic-v3"]);
    assert_eq!(cells(gic, "reg"), [0, 0x0800_0000, 0, 0x1_0000, 0, 0x0a00_0000, 0, 0x400_0000]);
    assert_eq!(cells(gic, "#redistributor-regions"), [1]);
    assert_eq!(cells(gic, "#interrupt-cells"), [3]);
    assert!(value(gic, "interrupt-controller").is_empty());
    assert_eq!(fdt.cpus().count(), 512);
}

#[test]
fn a_gicv2_has_a_cpu_interface() {
    let blob = blob(8, Gic::V2);
    let fdt = Fdt::new(&blob).unwrap();
    let gic = fdt.find_node("/interrupt-controller@8000000").unwrap();

    assert_eq!(texts(gic, "compatible"), ["arm,cortex-a15-gic"]);
    assert_eq!(cells(gic, "reg"), [0, 0x0800_0000, 0, 0x1000, 0, 0x0801_0000, 0, 0x2000]);
    assert!(gic.property("#redistributor-regions").is_none());
}

#[test]
fn the_serial_port_is_a_16550_with_an_edge_interrupt() {
    let blob = blob(2, V3);
    let fdt = Fdt::new(&blob).unwrap();
    let serial = fdt.find_node("/serial@10000000").unwrap();

    assert_eq!(texts(serial, "compatible"), ["ns16550a"]);
    assert_eq!(cells(serial, "reg"), [0, 0x1000_0000, 0, 0x1000]);
    assert_eq!(cells(serial, "clock-frequency"), [1_843_200]);
    assert_eq!(cells(serial, "interrupts"), [0, 0, 1]);
}

#[test]
fn primecell_devices_have_their_clock() {
    let blob = blob(2, V3);
    let fdt = Fdt::new(&blob).unwrap();

    for (path, compatible) in [("/rtc@10001000", "arm,pl031"), ("/gpio@10002000", "arm,pl061")] {
        let node = fdt.find_node(path).unwrap();
        let clock = fdt.find_phandle(cells(node, "clocks")[0]).unwrap();
        assert_eq!(texts(node, "compatible"), [compatible, "arm,primecell"]);
        assert_eq!(texts(node, "clock-names"), ["apb_pclk"]);
        assert_eq!(texts(clock, "compatible"), ["fixed-clock"]);
        assert_eq!(cells(clock, "#clock-cells"), [0]);
    }
}

#[test]
fn virtio_devices_are_listed_with_edge_interrupts() {
    let cpus = mpidrs(1);
    let nodes = [0, 1].map(|index| {
        let (range, spi) = layout::virtio(index).unwrap();
        MmioNode { range, spi }
    });
    let blob = Tree { virtio: &nodes, ..tree(&cpus, &Gic::V3 { cpus: 1 }) }.build().unwrap();
    let fdt = Fdt::new(&blob).unwrap();

    let second = fdt.find_node("/virtio_mmio@20010000").unwrap();

    assert!(fdt.find_node("/virtio_mmio@20000000").is_some());
    assert_eq!(texts(second, "compatible"), ["virtio,mmio"]);
    assert_eq!(cells(second, "reg"), [0, 0x2001_0000, 0, 0x1_0000]);
    assert_eq!(cells(second, "interrupts"), [0, 17, 1]);
    assert!(value(second, "dma-coherent").is_empty());
}

#[test]
fn the_alarm_of_the_clock_is_a_level() {
    let blob = blob(2, V3);
    let fdt = Fdt::new(&blob).unwrap();

    assert_eq!(cells(fdt.find_node("/rtc@10001000").unwrap(), "interrupts"), [0, 1, 4]);
}

#[test]
fn the_generation_id_is_no_memory_of_the_guest_and_has_an_edge() {
    let blob = blob(2, V3);
    let fdt = Fdt::new(&blob).unwrap();

    let node = fdt.find_node("/rng@10010000").unwrap();

    assert_eq!(texts(node, "compatible"), ["microsoft,vmgenid"]);
    assert_eq!(cells(node, "reg"), [0, 0x1001_0000, 0, 16]);
    assert_eq!(cells(node, "interrupts"), [0, 3, 1]);
}

#[test]
fn the_power_key_is_on_line_3_of_the_gpio_controller() {
    let blob = blob(2, V3);
    let fdt = Fdt::new(&blob).unwrap();
    let key = fdt.find_node("/gpio-keys/poweroff").unwrap();
    let gpios = cells(key, "gpios");

    let gpio = fdt.find_phandle(gpios[0]).unwrap();

    assert_eq!(texts(fdt.find_node("/gpio-keys").unwrap(), "compatible"), ["gpio-keys"]);
    assert_eq!(texts(key, "label"), ["poweroff"]);
    assert_eq!(cells(key, "linux,code"), [116]);
    assert_eq!(gpios[1..], [3, 0]);
    assert_eq!(gpio.name, "gpio@10002000");
    assert_eq!(cells(gpio, "interrupts"), [0, 2, 1]);
    assert_eq!(cells(gpio, "#gpio-cells"), [2]);
    assert!(value(gpio, "gpio-controller").is_empty());
}

#[test]
fn the_length_depends_on_neither_initrd_position_nor_seeds() {
    let cpus = mpidrs(2);
    let other = Tree {
        initrd: Some(MemoryRange::new(GuestAddress(0), Bytes::ZERO)),
        seeds: Seeds { rng: [0; 64], kaslr: 0 },
        ..tree(&cpus, &V3)
    };

    assert_eq!(other.build().unwrap().len(), blob(2, V3).len());
}

fn virtio_nodes(count: u32) -> Vec<MmioNode> {
    (0..count)
        .map(|index| layout::virtio(index).map(|(range, spi)| MmioNode { range, spi }).unwrap())
        .collect()
}

#[test]
#[cfg_attr(miri, ignore = "minutes: 512 CPUs, and no unsafe code")]
fn the_room_holds_every_device_and_the_longest_command_line() {
    let (line, nodes) = ("x".repeat(MAX_COMMAND_LINE), virtio_nodes(layout::MAX_VIRTIO_DEVICES));
    let caches = server();
    for (count, gic) in
        [(1, Gic::V2), (8, Gic::V2), (1, Gic::V3 { cpus: 1 }), (512, Gic::V3 { cpus: 512 })]
    {
        for caches in [None, Some(&caches)] {
            let cpus: Vec<_> = (0..count).map(|n| Mpidr::new(0xff_00ff_0000 | n)).collect();
            let all = Tree { command_line: &line, virtio: &nodes, caches, ..tree(&cpus, &gic) };
            let size = all.build().unwrap().len() as u64;

            let room = room(count as u32, caches).get();

            assert!(size <= room, "{size} bytes in {room}");
        }
    }
}

#[test]
fn there_is_room_for_as_many_vcpus_as_there_can_be() {
    assert!(room(512, Some(&server())) < MAX_FDT);
}

#[test]
fn seeds_are_not_printed() {
    let cpus = mpidrs(2);

    let printed = format!("{:?}", tree(&cpus, &V3));

    assert!(printed.contains("Seeds { .. }") && !printed.contains("165"));
}

#[test]
fn parts_that_contradict_each_other_are_refused() {
    let (two, nine) = (mpidrs(2), mpidrs(9));
    let twins = [Mpidr::new(1), Mpidr::new(1 << 31 | 1)];
    let empty = [MemoryRange::new(layout::RAM_BASE, Bytes::ZERO)];
    let long = "x".repeat(MAX_COMMAND_LINE + 1);
    let cases = [
        (Tree { cpus: &[], ..tree(&two, &V3) }, Error::NoCpus),
        (tree(&nine, &Gic::V2), Error::TooManyCpus { cpus: 9, max: 8, gic: Gic::V2 }),
        (tree(&nine, &V3), Error::Redistributors { redistributors: 2, cpus: 9 }),
        (tree(&twins, &V3), Error::SameAffinity(twins[1])),
        (Tree { memory: &[], ..tree(&two, &V3) }, Error::NoMemory),
        (Tree { memory: &empty, ..tree(&two, &V3) }, Error::NoMemory),
        (
            Tree { command_line: &long, ..tree(&two, &V3) },
            Error::CommandLineTooLong { length: MAX_COMMAND_LINE + 1 },
        ),
        (Tree { command_line: "a\0b", ..tree(&two, &V3) }, Error::CommandLineNul { offset: 1 }),
    ];
    for (tree, error) in cases {
        assert_eq!(tree.build(), Err(error));
    }
}

#[test]
#[cfg_attr(miri, ignore = "minutes: 30,000 ranges of memory, and no unsafe code")]
fn a_tree_larger_than_linux_takes_is_refused() {
    let cpus = mpidrs(2);
    let base = |n: u64| GuestAddress(layout::RAM_BASE.raw_value() + n * 0x20_0000);
    let many: Vec<_> = (0..30_000).map(|n| MemoryRange::new(base(n), layout::CHUNK)).collect();

    let result = Tree { memory: &many, ..tree(&cpus, &V3) }.build();

    assert!(matches!(result, Err(Error::TooLarge { size }) if size > MAX_FDT));
}

#[test]
fn refusals_of_the_writer_keep_their_cause() {
    let error = Error::from(vm_fdt::Error::InvalidString);

    assert!(std::error::Error::source(&error).is_some());
}

proptest! {
    #[test]
    fn any_command_line_comes_back_or_is_refused(line in "\\PC{0,2100}") {
        let cpus = mpidrs(2);
        match (Tree { command_line: &line, ..tree(&cpus, &V3) }).build() {
            Ok(blob) => {
                let fdt = Fdt::new(&blob).unwrap();
                let chosen = fdt.find_node("/chosen").unwrap();
                prop_assert_eq!(value(chosen, "bootargs"), [line.as_bytes(), b"\0"].concat());
            }
            Err(error) => prop_assert_eq!(error, Error::CommandLineTooLong { length: line.len() }),
        }
    }

    #[test]
    fn every_tree_fits_its_room(
        count in 1_u32..40,
        devices in 0..=layout::MAX_VIRTIO_DEVICES,
        line in "[a-z=. ]{0,2047}",
        described: bool,
    ) {
        let (cpus, nodes, caches) = (mpidrs(count.into()), virtio_nodes(devices), server());
        let caches = described.then_some(&caches);
        let gic = Gic::V3 { cpus: count };
        let tree = Tree { command_line: &line, virtio: &nodes, caches, ..tree(&cpus, &gic) };

        let size = tree.build().unwrap().len() as u64;

        prop_assert!(size <= room(count, caches).get());
    }

    #[test]
    #[cfg_attr(miri, ignore = "minutes: up to 512 CPUs, and no unsafe code")]
    fn every_number_of_cpus_is_described(count in 1u64..=512) {
        let blob = blob(count, Gic::V3 { cpus: count as u32 });
        let fdt = Fdt::new(&blob).unwrap();
        let described: Vec<_> = fdt.cpus().map(|cpu| cpu.ids().first() as u64).collect();
        let given: Vec<_> = mpidrs(count).iter().map(|cpu| cpu.affinity()).collect();
        prop_assert_eq!(described, given);
    }
}

#[test]
fn the_interrupt_of_a_pmu_is_a_level_that_is_high() {
    for (gic, trigger) in [(V3, 4), (Gic::V2, 0x304)] {
        let cpus = mpidrs(2);
        let blob = Tree { pmu: true, ..tree(&cpus, &gic) }.build().unwrap();
        let fdt = Fdt::new(&blob).unwrap();

        assert_eq!(cells(fdt.find_node("/pmu").unwrap(), "interrupts"), [1, 7, trigger]);
    }
}

#[test]
#[cfg_attr(miri, ignore = "minutes: it looks at each byte of two trees, and no unsafe code")]
fn a_pmu_is_described_where_there_is_one() {
    let (cpus, gic) = (mpidrs(2), Gic::V3 { cpus: 2 });
    let with = |pmu| Tree { pmu, ..tree(&cpus, &gic) }.build().unwrap();
    let has = |blob: &[u8]| {
        let name = b"arm,armv8-pmuv3\0";
        blob.windows(name.len()).any(|window| window == name)
    };
    assert!(has(&with(true)));
    assert!(!has(&with(false)));
}
