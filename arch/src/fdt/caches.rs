//! The nodes of caches (Devicetree Specification 0.4, 3.8).

use vm_fdt::FdtWriter;

use super::Error;
use crate::caches::{CacheTopology, Geometry, Level, MAX_LEVEL};

/// The phandle of the first CPU's caches; each CPU has [`MAX_LEVEL`] + 1.
const FIRST_PHANDLE: u32 = 0x100;
/// The phandles of shared caches: behind those of 512 CPUs.
const FIRST_SHARED_PHANDLE: u32 = 0x1_0000;

/// Where a cache node is: in the node of a CPU, or beside all of them.
#[derive(Clone, Copy)]
enum Owner {
    Cpu(u32),
    All,
}

/// What the node of CPU number `cpu` says of its caches: the first level as properties, and the others
/// that are its own as nodes. It must be the last of the node's content.
pub(super) fn of_cpu(fdt: &mut FdtWriter, cpu: u32, caches: &CacheTopology) -> Result<(), Error> {
    let levels = caches.levels();
    if let Some(first) = levels.first() {
        properties(fdt, first)?;
        next(fdt, 1, levels, cpu)?;
    }
    nodes(fdt, levels, Owner::Cpu(cpu))
}

/// The nodes of the caches that all CPUs share.
pub(super) fn shared(fdt: &mut FdtWriter, caches: &CacheTopology) -> Result<(), Error> {
    nodes(fdt, caches.levels(), Owner::All)
}

/// The nodes of those levels behind the first that `owner` has.
fn nodes(fdt: &mut FdtWriter, levels: &[Level], owner: Owner) -> Result<(), Error> {
    for (number, level) in (1..).zip(levels).skip(1) {
        let (cpu, own) = match owner {
            Owner::Cpu(cpu) => (cpu, !level.shared),
            Owner::All => (0, level.shared),
        };
        if !own {
            continue;
        }
        let node = fdt.begin_node(&format!("l{number}-cache"))?;
        fdt.property_string("compatible", "cache")?;
        fdt.property_u32("cache-level", number)?;
        properties(fdt, level)?;
        next(fdt, number, levels, cpu)?;
        fdt.property_phandle(phandle(number, level, cpu))?;
        fdt.end_node(node)?;
    }
    Ok(())
}

/// What is behind level `number`.
fn next(fdt: &mut FdtWriter, number: u32, levels: &[Level], cpu: u32) -> Result<(), Error> {
    match levels.get(number as usize) {
        Some(level) => Ok(fdt.property_u32("next-level-cache", phandle(number + 1, level, cpu))?),
        None => Ok(()),
    }
}

fn phandle(number: u32, level: &Level, cpu: u32) -> u32 {
    match level.shared {
        true => FIRST_SHARED_PHANDLE + number,
        false => FIRST_PHANDLE + cpu * (MAX_LEVEL as u32 + 1) + number,
    }
}

fn properties(fdt: &mut FdtWriter, level: &Level) -> Result<(), Error> {
    if level.unified.is_some() {
        fdt.property_null("cache-unified")?;
    }
    let caches = [("d-", level.data), ("i-", level.instruction), ("", level.unified)];
    for (prefix, cache) in caches {
        let Some(Geometry { size, line, sets }) = cache else { continue };
        // A size is less than 4 GiB: Cache::parse.
        fdt.property_u32(&format!("{prefix}cache-size"), size.get() as u32)?;
        fdt.property_u32(&format!("{prefix}cache-line-size"), line)?;
        fdt.property_u32(&format!("{prefix}cache-sets"), sets)?;
    }
    Ok(())
}
