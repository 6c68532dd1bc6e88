//! Where a capacity comes from, over hosts made of files.
#![allow(clippy::unwrap_used)]

use super::*;
use arch::mte::binding::Fault;
use tempfile::TempDir;

/// A host of 8 GiB whose device tree describes 256 MiB of tag storage, in a directory.
struct Host(TempDir);

const REGION: &str = "reserved-memory/tag-storage@8f0000000";

fn cells(cells: &[u32]) -> Vec<u8> {
    cells.iter().flat_map(|cell| cell.to_be_bytes()).collect()
}

impl Host {
    fn bare() -> Self {
        let host = Self(tempfile::tempdir().unwrap());
        host.file("meminfo", b"MemTotal:        8388608 kB\nMemFree:  1 kB\n");
        host.file("nodes/node1/meminfo", b"Node 1 MemTotal:         131072 kB\n");
        host
    }

    fn described() -> Self {
        let host = Self::bare();
        for parent in ["", "reserved-memory/"] {
            host.property(&format!("{parent}#address-cells"), &cells(&[2]));
            host.property(&format!("{parent}#size-cells"), &cells(&[2]));
        }
        host.property("memory@80000000/device_type", b"memory\0");
        host.property("memory@80000000/phandle", &cells(&[5]));
        host.property("memory@80000000/reg", &cells(&[0, 0x8000_0000, 2, 0]));
        host.property(&format!("{REGION}/compatible"), b"arm,mte-tag-storage\0");
        host.property(&format!("{REGION}/reg"), &cells(&[8, 0xf000_0000, 0, 0x1000_0000]));
        host.property(&format!("{REGION}/block-size"), &cells(&[0x1000]));
        host.property(&format!("{REGION}/tagged-memory"), &cells(&[5]));
        host.property(&format!("{REGION}/reusable"), b"");
        host
    }

    fn file(&self, path: &str, contents: &[u8]) {
        let path = self.0.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, contents).unwrap();
    }

    fn property(&self, path: &str, value: &[u8]) {
        self.file(&format!("tree/{path}"), value);
    }

    fn region(&self, property: &str, value: &[u8]) {
        self.property(&format!("{REGION}/{property}"), value);
    }

    fn remove(&self, path: &str) {
        fs::remove_file(self.0.path().join("tree").join(path)).unwrap();
    }

    fn ask(&self, wanted: Wanted) -> Result<Capacity, Error> {
        let at = |name| self.0.path().join(name);
        let (device_tree, meminfo) = (at("tree"), at("meminfo"));
        Places { device_tree, meminfo, page: Bytes::kib(4) }.capacity(wanted)
    }

    fn auto(&self) -> Result<Capacity, Error> {
        self.ask(Wanted::Auto)
    }

    /// What is wrong with the device tree; the message names the node.
    fn fault(&self) -> Fault {
        match self.auto() {
            Err(error @ Error::Binding(_)) => {
                assert!(crate::error::chain(&error).contains("tag-storage@"), "{error}");
                let Error::Binding(error) = error else { unreachable!() };
                error.fault
            }
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn the_device_tree_says_how_much_there_is() {
    let host = Host::described();
    host.region("block-size", &cells(&[0x4000]));

    let capacity = host.auto().unwrap();

    assert_eq!(capacity.size, Bytes::mib(256));
    assert_eq!(capacity.geometry.block(), Bytes::kib(16));
    assert_eq!(capacity.source.to_string(), "auto: the device tree's tag storage");
}

#[test]
fn without_a_description_it_is_a_share_of_memory() {
    let host = Host::bare();

    let capacity = host.auto().unwrap();

    assert_eq!((capacity.size, capacity.source), (Bytes::mib(256), Source::Memory));
    assert_eq!(capacity.source.to_string(), "auto: 1/32 of this host's memory");
}

#[test]
fn a_size_asks_nobody() {
    let host = Host::described();
    host.remove(&format!("{REGION}/reg"));

    let capacity = host.ask("64M".parse().unwrap()).unwrap();

    assert_eq!((capacity.size, capacity.source), (Bytes::mib(64), Source::Given));
}

#[test]
fn the_first_form_of_the_binding_is_read_as_well() {
    let host = Host::bare();
    for (name, value) in [("#address-cells", 2), ("#size-cells", 2)] {
        host.property(name, &cells(&[value]));
    }
    host.property("memory@80000000/device_type", b"memory\0");
    host.property("memory@80000000/phandle", &cells(&[5]));
    host.property("memory@80000000/reg", &cells(&[0, 0x8000_0000, 2, 0]));
    host.property("tags@8f0000000/compatible", b"other\0arm,mte-tag-storage\0");
    host.property("tags@8f0000000/reg", &cells(&[8, 0xf000_0000, 0, 0x1000_0000]));
    host.property("tags@8f0000000/block-size", &cells(&[0x1000]));
    host.property("tags@8f0000000/memory", &cells(&[5]));

    assert_eq!(host.auto().unwrap().size, Bytes::mib(256));
}

#[test]
fn a_node_that_is_off_is_none() {
    let host = Host::described();
    host.region("status", b"disabled\0");

    assert_eq!(host.auto().unwrap().source, Source::Memory);
    host.region("status", b"okay\0");
    assert_eq!(host.auto().unwrap().source, Source::DeviceTree(1));
}

#[test]
fn a_property_that_is_missing_is_named() {
    for name in ["reg", "block-size", "tagged-memory"] {
        let host = Host::described();
        host.remove(&format!("{REGION}/{name}"));

        assert_eq!(host.fault(), Fault::Missing(name));
    }
    let host = Host::described();
    host.remove(&format!("{REGION}/reusable"));
    assert_eq!(host.fault(), Fault::NotReusable);
    let host = Host::described();
    host.remove("memory@80000000/phandle");
    assert_eq!(host.fault(), Fault::NoMemoryNode(5));
}

#[test]
fn a_property_that_makes_no_sense_is_named() {
    type Check = fn(&Fault) -> bool;
    let wrong: [(&str, Vec<u8>, Check); 9] = [
        ("reg", cells(&[8, 0xf000_0000, 0]), |f| *f == Fault::Malformed("reg")),
        ("reg", vec![1; 5000], |f| *f == Fault::Malformed("reg")),
        ("reg", cells(&[8, 0xf000_0000, 0, 0]), |f| *f == Fault::BadRange("reg")),
        ("reg", cells(&[8, 0xf000_1000, 0, 0x1000_0000]), |f| matches!(f, Fault::Unaligned { .. })),
        ("reg", cells(&[8, 0xf000_0000, 0, 0x0800_0000]), |f| matches!(f, Fault::Coverage { .. })),
        ("reg", cells(&[1, 0, 0, 0x1000_0000]), |f| matches!(f, Fault::Overlap(_))),
        ("block-size", cells(&[0]), |f| matches!(f, Fault::Geometry(_))),
        ("block-size", cells(&[0x3000]), |f| matches!(f, Fault::PartialBlock { .. })),
        ("tagged-memory", b"\0".to_vec(), |f| *f == Fault::Malformed("tagged-memory")),
    ];
    for (property, value, is_expected) in wrong {
        let host = Host::described();
        host.region(property, &value);

        let fault = host.fault();
        assert!(is_expected(&fault), "{property}: {fault}");
    }
}

#[test]
fn cells_that_make_no_sense_are_refused() {
    for value in [cells(&[0]), cells(&[3]), cells(&[0x102]), Vec::new()] {
        let host = Host::described();
        host.property("reserved-memory/#address-cells", &value);

        assert_eq!(host.fault(), Fault::Malformed("reg"));
    }
}

#[test]
fn one_bad_region_disables_all() {
    let host = Host::described();
    host.property("reserved-memory/z-tag-storage@0/compatible", b"arm,mte-tag-storage\0");

    assert_eq!(host.fault(), Fault::Missing("reg"));
}

#[test]
fn memory_that_cannot_be_read_is_an_error() {
    let host = Host::bare();
    host.file("meminfo", b"MemFree: 7 kB\n");
    assert!(matches!(host.auto(), Err(Error::Meminfo(_))));

    fs::remove_file(host.0.path().join("meminfo")).unwrap();
    assert!(matches!(host.auto(), Err(Error::Read { .. })));
}

#[test]
fn what_is_neither_auto_nor_a_size_is_refused() {
    assert_eq!("auto".parse(), Ok(Wanted::Auto));
    assert!("automatic".parse::<Wanted>().is_err());
    assert!("".parse::<Wanted>().is_err());
}
