//! What a guest finds when it boots: the device tree in memory, and the registers of the first vCPU.
//! A guest that is restored has both already.

use arch::caches::CacheTopology;
use arch::fdt::{MmioNode, Seeds, Tree};
use arch::irq::Spi;
use arch::layout;
use arch::range::MemoryRange;
use arch::units::Bytes;
use vm_memory::Bytes as _;

use super::Error;
use crate::backends::entropy;
use crate::hypervisor::{Vcpus, Vm};
use crate::memory::Loaded;
use crate::spec::Spec;

/// Makes the guest ready to boot.
pub(super) fn prepare(
    vm: &dyn Vm,
    spec: &Spec,
    cpus: &mut Vcpus,
    caches: Option<&CacheTopology>,
    loaded: &Loaded,
    virtio: &[MmioNode],
) -> Result<(), Error> {
    write_fdt(vm, spec, cpus, caches, loaded, virtio)?;
    match cpus.vcpus.first_mut() {
        Some(first) => {
            first.set_boot_state(loaded.entry, loaded.fdt.base).map_err(Error::BootState)
        }
        None => Ok(()),
    }
}

fn write_fdt(
    vm: &dyn Vm,
    spec: &Spec,
    cpus: &Vcpus,
    caches: Option<&CacheTopology>,
    loaded: &Loaded,
    virtio: &[MmioNode],
) -> Result<(), Error> {
    let node = |range: MemoryRange, spi: Spi| MmioNode { range, spi };
    let tree = Tree {
        command_line: &spec.command_line,
        memory: &[vm.ram().range()],
        initrd: loaded.initrd,
        cpus: &cpus.affinities,
        gic: &cpus.gic,
        serial: node(layout::SERIAL, layout::SERIAL_SPI),
        rtc: node(layout::RTC, layout::RTC_SPI),
        gpio: node(layout::GPIO, layout::GPIO_SPI),
        virtio,
        caches,
        pmu: spec.pmu,
        seeds: seeds().map_err(Error::Seeds)?,
    };
    let blob = tree.build()?;
    let (size, room) = (Bytes::new(blob.len() as u64), loaded.fdt.size);
    if size > room {
        return Err(arch::fdt::Error::Room { size, room }.into());
    }
    vm.ram().write_slice(&blob, loaded.fdt.base).map_err(Error::WriteFdt)
}

fn seeds() -> Result<Seeds, rustix::io::Errno> {
    let mut seeds = Seeds { rng: [0; 64], kaslr: 0 };
    entropy::fill(&mut seeds.rng)?;
    let mut kaslr = [0; 8];
    entropy::fill(&mut kaslr)?;
    seeds.kaslr = u64::from_ne_bytes(kaslr);
    Ok(seeds)
}
