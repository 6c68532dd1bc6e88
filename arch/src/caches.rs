//! The caches of the host's CPUs, and whether they can be described to the guest.
//!
//! The host's kernel lists the caches of each CPU in sysfs; the guest finds the kinds of its own in
//! CLIDR_EL1 and everything else in the device tree. KVM makes CLIDR_EL1 up from CTR_EL0 (`reset_clidr`
//! in `arch/arm64/kvm/sys_regs.c`), so the two may contradict each other. Linux pairs them one by one:
//! a description that does not fit would give a cache the size of another, so there is none then.
//!
//! # References
//! - Linux `Documentation/ABI/testing/sysfs-devices-system-cpu`, `drivers/base/cacheinfo.c`,
//!   `arch/arm64/kernel/cacheinfo.c`
//! - Arm DDI 0487, CLIDR_EL1
//! - Devicetree Specification 0.4, 3.8 "Multi-level and Shared Cache Nodes"

use std::fmt;

use thiserror::Error;

use crate::units::Bytes;

/// The levels that CLIDR_EL1 has fields for.
pub const MAX_LEVEL: usize = 7;

/// Why no caches are described to the guest.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum Unknown {
    /// The host's kernel lists none.
    #[error("the host's kernel lists no caches")]
    Unlisted,
    /// A file of sysfs is not there, as where firmware does not describe the cache.
    #[error("the host's kernel does not say the {file} of a cache")]
    Missing {
        /// Its name.
        file: &'static str,
    },
    /// A file of sysfs holds something else than expected.
    #[error("the host's kernel gives {text:?} as the {file} of a cache")]
    Text {
        /// Its name.
        file: &'static str,
        /// What it holds, cut to a line.
        text: String,
    },
    /// The levels are not 1, 2, 3 and so on, or one has two caches of a kind.
    #[error("the levels of the host's caches do not follow each other")]
    Levels,
    /// A level behind the first has separate caches, which the device tree of Linux cannot say.
    #[error("the host has separate data and instruction caches at level {level}")]
    Separate {
        /// The level.
        level: usize,
    },
    /// A vCPU can run on CPUs with different caches.
    #[error("the host's CPUs have different caches")]
    Different,
    /// CLIDR_EL1 and sysfs contradict each other.
    #[error(
        "the guest's CPUs show {guest} at level {level} (CLIDR_EL1), where the host's have {host}"
    )]
    Clidr {
        /// The level.
        level: usize,
        /// What CLIDR_EL1 says.
        guest: Kind,
        /// What sysfs says.
        host: Kind,
    },
}

/// What kinds of cache one level has: the values of CLIDR_EL1.Ctype.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// None.
    None,
    /// An instruction cache.
    Instruction,
    /// A data cache.
    Data,
    /// One of each.
    Separate,
    /// One for both.
    Unified,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Kind::None => "no cache",
            Kind::Instruction => "an instruction cache",
            Kind::Data => "a data cache",
            Kind::Separate => "separate caches",
            Kind::Unified => "a unified cache",
        })
    }
}

/// A value of CLIDR_EL1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Clidr(u64);

impl Clidr {
    /// The register's value.
    pub const fn new(value: u64) -> Clidr {
        Clidr(value)
    }

    /// What is at `level`, from 1. A reserved value counts as none, as do levels beyond the first
    /// without a cache (Arm DDI 0487: the fields above it are ignored).
    pub fn kind(self, level: usize) -> Kind {
        let at = |level: usize| match self.0 >> (3 * (level - 1)) & 7 {
            1 => Kind::Instruction,
            2 => Kind::Data,
            3 => Kind::Separate,
            4 => Kind::Unified,
            _ => Kind::None,
        };
        let present = (1..=MAX_LEVEL).contains(&level);
        match present && (1..=level).all(|level| at(level) != Kind::None) {
            true => at(level),
            false => Kind::None,
        }
    }
}

/// The files of one cache in sysfs, `cpu*/cache/index*/`, as they are; `None` where there is none.
#[derive(Clone, Copy, Debug, Default)]
pub struct IndexFiles<'a> {
    /// `level`.
    pub level: Option<&'a str>,
    /// `type`.
    pub kind: Option<&'a str>,
    /// `size`.
    pub size: Option<&'a str>,
    /// `coherency_line_size`.
    pub line_size: Option<&'a str>,
    /// `number_of_sets`.
    pub sets: Option<&'a str>,
    /// `shared_cpu_list`.
    pub shared: Option<&'a str>,
}

/// The dimensions of one cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// Its size.
    pub size: Bytes,
    /// Bytes in a line.
    pub line: u32,
    /// Its sets.
    pub sets: u32,
}

/// One cache as sysfs lists it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cache {
    level: usize,
    kind: Kind,
    geometry: Geometry,
    /// The CPUs that have it, as the kernel writes them.
    cpus: String,
}

impl Cache {
    /// Reads the files of one cache.
    ///
    /// # Errors
    /// When one is missing or makes no sense.
    pub fn parse(files: &IndexFiles<'_>) -> Result<Cache, Unknown> {
        let level = number("level", files.level, "")?;
        let level = usize::try_from(level).ok().filter(|level| (1..=MAX_LEVEL).contains(level));
        let kind = match trimmed("type", files.kind)? {
            "Data" => Kind::Data,
            "Instruction" => Kind::Instruction,
            "Unified" => Kind::Unified,
            other => return Err(text("type", other)),
        };
        let size = Bytes::kib(number("size", files.size, "K")?.into());
        Ok(Cache {
            level: level.ok_or_else(|| text("level", files.level.unwrap_or_default()))?,
            kind,
            geometry: Geometry {
                // A size of 4 GiB and more does not fit the property.
                size: Some(size)
                    .filter(|size| u32::try_from(size.get()).is_ok())
                    .ok_or_else(|| text("size", files.size.unwrap_or_default()))?,
                line: number("coherency_line_size", files.line_size, "")?,
                sets: number("number_of_sets", files.sets, "")?,
            },
            cpus: trimmed("shared_cpu_list", files.shared)?.to_owned(),
        })
    }
}

fn trimmed<'a>(file: &'static str, content: Option<&'a str>) -> Result<&'a str, Unknown> {
    Ok(content.ok_or(Unknown::Missing { file })?.trim_end())
}

/// A number above zero.
fn number(file: &'static str, content: Option<&str>, unit: &str) -> Result<u32, Unknown> {
    let content = trimmed(file, content)?;
    let digits =
        content.strip_suffix(unit).filter(|digits| digits.bytes().all(|b| b.is_ascii_digit()));
    let value = digits.and_then(|digits| digits.parse().ok()).filter(|value| *value > 0);
    value.ok_or_else(|| text(file, content))
}

fn text(file: &'static str, content: &str) -> Unknown {
    Unknown::Text {
        file,
        text: content.lines().next().unwrap_or_default().chars().take(40).collect(),
    }
}

/// The caches of one level.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Level {
    /// The data cache, where there is a separate one.
    pub data: Option<Geometry>,
    /// The instruction cache, where there is a separate one.
    pub instruction: Option<Geometry>,
    /// The cache for both.
    pub unified: Option<Geometry>,
    /// More CPUs have it than have the cache of the first level.
    pub shared: bool,
}

impl Level {
    /// What kinds of cache it has.
    pub fn kind(&self) -> Kind {
        match (self.data, self.instruction, self.unified) {
            (_, _, Some(_)) => Kind::Unified,
            (Some(_), Some(_), _) => Kind::Separate,
            (Some(_), None, _) => Kind::Data,
            (None, Some(_), _) => Kind::Instruction,
            (None, None, None) => Kind::None,
        }
    }
}

/// The caches that each vCPU sees: levels from 1, without gaps.
///
/// vCPUs are not bound to CPUs of the host. So a cache that several of these share is described as shared
/// by all vCPUs, and any other as each vCPU's own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CacheTopology {
    levels: Vec<Level>,
}

impl CacheTopology {
    /// The caches of the host, by those of each of its CPUs.
    ///
    /// # Errors
    /// When there are none, or the device tree cannot describe them.
    pub fn new(cpus: &[Vec<Cache>]) -> Result<CacheTopology, Unknown> {
        let mut topologies =
            cpus.iter().filter(|caches| !caches.is_empty()).map(|caches| levels(caches));
        let first = topologies.next().ok_or(Unknown::Unlisted)??;
        for other in topologies {
            if other? != first {
                return Err(Unknown::Different);
            }
        }
        Ok(CacheTopology { levels: first })
    }

    /// The levels, from 1.
    pub fn levels(&self) -> &[Level] {
        &self.levels
    }

    /// Compares it with what the guest's CPUs show. Levels behind the last of CLIDR_EL1 are caches
    /// outside the CPU, which only the device tree describes.
    ///
    /// # Errors
    /// When CLIDR_EL1 shows something else.
    pub fn check(&self, clidr: Clidr) -> Result<(), Unknown> {
        for level in 1..=MAX_LEVEL {
            let guest = clidr.kind(level);
            let host = self.levels.get(level - 1).map_or(Kind::None, Level::kind);
            let outside = level > 1 && guest == Kind::None;
            if guest != host && !outside {
                return Err(Unknown::Clidr { level, guest, host });
            }
        }
        Ok(())
    }
}

/// The caches of one CPU by levels.
fn levels(caches: &[Cache]) -> Result<Vec<Level>, Unknown> {
    let depth = caches.iter().map(|cache| cache.level).max().unwrap_or_default();
    let innermost = caches.iter().find(|cache| cache.level == 1).ok_or(Unknown::Levels)?;
    let mut levels: Vec<Level> = Vec::new();
    for number in 1..=depth {
        let here: Vec<&Cache> = caches.iter().filter(|cache| cache.level == number).collect();
        let of = |kind| here.iter().find(|cache| cache.kind == kind).map(|cache| cache.geometry);
        let (data, instruction) = (of(Kind::Data), of(Kind::Instruction));
        let unified = of(Kind::Unified);
        let kinds = [data, instruction, unified].iter().flatten().count();
        if kinds == 0 || kinds != here.len() || unified.is_some() && kinds > 1 {
            return Err(Unknown::Levels);
        }
        if number > 1 && unified.is_none() {
            return Err(Unknown::Separate { level: number });
        }
        let wider = here.iter().any(|cache| cache.cpus != innermost.cpus);
        // What is behind a shared cache is shared.
        let shared = number > 1 && (wider || levels.iter().any(|level| level.shared));
        levels.push(Level { data, instruction, unified, shared });
    }
    Ok(levels)
}

#[cfg(test)]
mod tests;
