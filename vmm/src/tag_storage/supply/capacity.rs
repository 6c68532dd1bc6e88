//! How much tag storage a pool has: what the user says, or what the host's device tree describes, or the
//! share of memory that tags would take.

use std::fmt;
use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use arch::mte::binding::{self, COMPATIBLE, Cells, Form, MemoryNode, TagNode};
use arch::mte::geometry::{self, Geometry};
use arch::mte::granule::MEMORY_PER_TAG_STORAGE;
use arch::units::Bytes;
use thiserror::Error;

use crate::sys::meminfo;

/// The longest property that is read: those that matter have some bytes.
const MAX_PROPERTY: u64 = 4 << 10;

/// Nodes of one level that are looked at. A large server's tree has some hundred.
const MAX_NODES: usize = 4096;

/// What was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// What the host says.
    Auto,
    /// So much.
    Size(Bytes),
}

/// Why a text is no capacity.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("a capacity is `auto` or a size")]
pub struct ParseError(#[source] arch::units::ParseBytesError);

impl std::str::FromStr for Wanted {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "auto" => Ok(Self::Auto),
            size => size.parse().map(Self::Size).map_err(ParseError),
        }
    }
}

/// How much there is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Capacity {
    /// Tag storage.
    pub size: Bytes,
    /// Its pages and blocks.
    pub geometry: Geometry,
    /// Who says so.
    pub source: Source,
}

/// Who says how much there is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// The user.
    Given,
    /// So many regions of the device tree.
    DeviceTree(usize),
    /// 1/32 of the host's memory: there is no description.
    Memory,
    /// The memory of this NUMA node.
    Node(u32),
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Given => f.write_str("as given"),
            Self::DeviceTree(1) => f.write_str("auto: the device tree's tag storage"),
            Self::DeviceTree(regions) => {
                write!(f, "auto: the device tree's {regions} regions of tag storage")
            }
            Self::Memory => f.write_str("auto: 1/32 of this host's memory"),
            Self::Node(node) => write!(f, "auto: the memory of NUMA node {node}"),
        }
    }
}

/// Why it is unknown how much there is.
#[derive(Debug, Error)]
pub enum Error {
    /// The device tree's description is wrong.
    #[error("the host's device tree is wrong: mend it, or give a --capacity")]
    Binding(#[from] binding::Error),
    /// Regions differ.
    #[error(
        "the device tree's regions of tag storage have blocks of different sizes, {0} and {1}, which \
         one pool cannot have: give a --capacity"
    )]
    Mixed(Bytes, Bytes),
    /// A page of this host makes no geometry.
    #[error("tag storage cannot be shared out on this host")]
    Geometry(#[from] geometry::Error),
    /// Something of the host cannot be read.
    #[error("cannot read {path:?}: give a --capacity")]
    Read {
        /// The file or directory.
        path: PathBuf,
        /// The kernel's reason.
        #[source]
        source: io::Error,
    },
    /// What was read makes no sense.
    #[error("{0:?} does not say how much memory there is: give a --capacity")]
    Meminfo(PathBuf),
}

/// Where the host describes itself.
#[derive(Clone, Debug)]
pub struct Places {
    /// The device tree, a directory a node and a file a property.
    pub device_tree: PathBuf,
    /// As `/proc/meminfo`.
    pub meminfo: PathBuf,
    /// The size of a page.
    pub page: Bytes,
}

impl Places {
    /// Those of this host.
    pub fn host() -> Self {
        Self {
            device_tree: "/sys/firmware/devicetree/base".into(),
            meminfo: "/proc/meminfo".into(),
            page: Bytes::new(rustix::param::page_size() as u64),
        }
    }

    /// How much a ledger has.
    ///
    /// # Errors
    /// When the host must be asked and its answer is of no use.
    pub fn capacity(&self, wanted: Wanted) -> Result<Capacity, Error> {
        let geometry = Geometry::new(self.page, self.page)?;
        let (size, source) = match wanted {
            Wanted::Size(size) => (size, Source::Given),
            Wanted::Auto => match self.described()? {
                Some(capacity) => return Ok(capacity),
                None => {
                    let total = memory_total(&self.meminfo)?;
                    (Bytes::new(total.get() / MEMORY_PER_TAG_STORAGE), Source::Memory)
                }
            },
        };
        Ok(Capacity { size, geometry, source })
    }

    /// What the device tree describes, if it describes any tag storage.
    fn described(&self) -> Result<Option<Capacity>, Error> {
        let root = Node::at(&self.device_tree);
        let reserved = root.child("reserved-memory");
        let mut tags = Vec::new();
        for (parent, form) in [(&reserved, Form::ReservedMemory), (&root, Form::Root)] {
            for node in parent.children()? {
                if node.is_compatible()? && node.is_enabled()? {
                    tags.push(Tags::read(&node, form)?);
                }
            }
        }
        if tags.is_empty() {
            return Ok(None);
        }
        let mut memory = Vec::new();
        for node in root.children()? {
            if node.text("device_type")?.as_deref() == Some("memory") {
                memory.push(Memory::read(&node)?);
            }
        }
        let tags: Vec<TagNode<'_>> = tags.iter().map(Tags::borrow).collect();
        let memory: Vec<MemoryNode<'_>> = memory.iter().map(Memory::borrow).collect();
        let (root, reserved) = (root.cells()?, reserved.cells()?);
        let regions = binding::regions(&tags, &memory, root, reserved, self.page)?;
        let Some(first) = regions.first() else { return Ok(None) };
        let geometry = first.geometry;
        if let Some(other) = regions.iter().find(|region| region.geometry != geometry) {
            return Err(Error::Mixed(geometry.block(), other.geometry.block()));
        }
        // The regions do not overlap, so that their sum is an address.
        let size = regions.iter().map(|region| region.tags.size.get()).sum();
        let source = Source::DeviceTree(regions.len());
        Ok(Some(Capacity { size: Bytes::new(size), geometry, source }))
    }
}

/// The line `MemTotal:` of a file in the form of `/proc/meminfo`.
fn memory_total(path: &Path) -> Result<Bytes, Error> {
    let text =
        fs::read_to_string(path).map_err(|source| Error::Read { path: path.to_owned(), source })?;
    meminfo::field(&text, "MemTotal").ok_or_else(|| Error::Meminfo(path.to_owned()))
}

/// A node of the device tree.
struct Node(PathBuf);

impl Node {
    fn at(path: &Path) -> Self {
        Self(path.to_owned())
    }

    fn child(&self, name: &str) -> Self {
        Self(self.0.join(name))
    }

    fn name(&self) -> String {
        let name = self.0.file_name().unwrap_or_default();
        name.to_string_lossy().into_owned()
    }

    /// Nodes below, in the order of their names; none of a node that is not there.
    fn children(&self) -> Result<Vec<Node>, Error> {
        let failed = |source| Error::Read { path: self.0.clone(), source };
        let entries = match fs::read_dir(&self.0) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(failed(error)),
        };
        let mut nodes = Vec::new();
        for entry in entries.take(MAX_NODES) {
            let entry = entry.map_err(failed)?;
            if entry.file_type().map_err(failed)?.is_dir() {
                nodes.push(Node(entry.path()));
            }
        }
        nodes.sort_by(|a, b| a.0.cmp(&b.0));
        Ok(nodes)
    }

    /// A property; none where there is none.
    fn property(&self, name: &str) -> Result<Option<Vec<u8>>, Error> {
        let path = self.0.join(name);
        let mut value = Vec::new();
        let read =
            fs::File::open(&path).and_then(|file| file.take(MAX_PROPERTY).read_to_end(&mut value));
        match read {
            Ok(_) => Ok(Some(value)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(Error::Read { path, source }),
        }
    }

    /// A text, without the zero at its end.
    fn text(&self, name: &str) -> Result<Option<String>, Error> {
        let text =
            |value: Vec<u8>| String::from_utf8_lossy(&value).trim_end_matches('\0').to_owned();
        Ok(self.property(name)?.map(text))
    }

    fn is_compatible(&self) -> Result<bool, Error> {
        let list = self.property("compatible")?.unwrap_or_default();
        Ok(list.split(|byte| *byte == 0).any(|name| name == COMPATIBLE.as_bytes()))
    }

    /// As the kernel decides it (drivers/of/base.c, __of_device_is_available).
    fn is_enabled(&self) -> Result<bool, Error> {
        let status = self.text("status")?;
        Ok(status.is_none_or(|status| matches!(status.as_str(), "okay" | "ok")))
    }

    /// The numbers of cells of its children, where the specification's defaults are 2 and 1.
    fn cells(&self) -> Result<Cells, Error> {
        let cells = |name, default| -> Result<u8, Error> {
            let Some(value) = self.property(name)? else { return Ok(default) };
            let value: Option<[u8; 4]> = value.as_slice().try_into().ok();
            // What is none is refused where it is used.
            Ok(value.map_or(0, |cell| u8::try_from(u32::from_be_bytes(cell)).unwrap_or(0)))
        };
        Ok(Cells { address: cells("#address-cells", 2)?, size: cells("#size-cells", 1)? })
    }
}

/// The properties of a tag storage node.
struct Tags {
    name: String,
    form: Form,
    reg: Option<Vec<u8>>,
    block_size: Option<Vec<u8>>,
    tagged_memory: Option<Vec<u8>>,
    reusable: bool,
}

impl Tags {
    fn read(node: &Node, form: Form) -> Result<Self, Error> {
        let tagged_memory = match form {
            Form::ReservedMemory => "tagged-memory",
            Form::Root => "memory",
        };
        Ok(Self {
            name: node.name(),
            form,
            reg: node.property("reg")?,
            block_size: node.property("block-size")?,
            tagged_memory: node.property(tagged_memory)?,
            reusable: node.property("reusable")?.is_some(),
        })
    }

    fn borrow(&self) -> TagNode<'_> {
        TagNode {
            name: &self.name,
            form: self.form,
            reg: self.reg.as_deref(),
            block_size: self.block_size.as_deref(),
            tagged_memory: self.tagged_memory.as_deref(),
            reusable: self.reusable,
        }
    }
}

/// The properties of a memory node.
struct Memory {
    phandle: Option<Vec<u8>>,
    reg: Option<Vec<u8>>,
    usable: Option<Vec<u8>>,
}

impl Memory {
    fn read(node: &Node) -> Result<Self, Error> {
        Ok(Self {
            phandle: node.property("phandle")?,
            reg: node.property("reg")?,
            usable: node.property("linux,usable-memory")?,
        })
    }

    fn borrow(&self) -> MemoryNode<'_> {
        MemoryNode {
            phandle: self.phandle.as_deref(),
            reg: self.reg.as_deref(),
            usable: self.usable.as_deref(),
        }
    }
}

#[cfg(test)]
mod tests;
