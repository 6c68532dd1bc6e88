//! The machine before its devices: what KVM, memory and kernel are made of.

use arch::caches::CacheTopology;
use arch::gic::interrupt_count;
use arch::layout;
use arch::range::MemoryRange;
use arch::units::Bytes;
use vm_memory::{Bytes as _, GuestAddress};

use super::contents::Destination;
use super::lazy::LazyMemory;
use super::{Error, MachineState};
use crate::backends::reporting;
use crate::config::{HugePages, MemoryBacking, MteMode};
use crate::error::{chain, say};
use crate::hypervisor::state::{GicState, VcpuState};
use crate::hypervisor::{self, CpuRequest, Hypervisor, Vcpus, Vm};
use crate::memory::{self, Attributes, Backing, GuestRam, Loaded};
use crate::snapshot::{self, MemoryReader, SnapshotId, WorkingSet};
use crate::spec::{DiskSpec, Spec};
use crate::sys::caches;
use crate::tag_storage::{BorrowerLease, TagReservation};
use crate::template::{Connection, SharedBootImage, Template};

/// The pages of hugetlbfs: as large as a chunk, whatever the host's own.
const HUGE_PAGE: Bytes = layout::CHUNK;

/// A VM that exists in the hypervisor with its kernel loaded, and that nothing outside this process shows yet:
/// killed now, it leaves nothing behind.
pub struct Board {
    // Field order is drop order: vCPUs, VM, and with it the memory.
    pub(super) cpus: Vcpus,
    pub(super) vm: Box<dyn Vm>,
    /// The host's caches, if the guest boots, the kernel lists them and the guest's CPUs show the same.
    pub(super) caches: Option<CacheTopology>,
    pub(super) origin: Origin,
    pub(super) mte: Mte,
    pub(super) tags: Option<TagReservation>,
    pub(super) placement: Option<BorrowerLease>,
    /// The snapshot since which changes of guest memory are tracked.
    pub(super) base: Option<SnapshotId>,
}

/// What the guest starts from.
pub(super) enum Origin {
    /// Its kernel.
    Kernel {
        loaded: Loaded,
        /// With the process that holds its boot image, if it has one.
        holder: Option<Connection>,
    },
    /// A state that was saved, with its memory.
    Saved {
        state: Box<MachineState>,
        /// What loads its memory, if that is loaded as it is touched.
        lazy: Option<LazyMemory>,
        /// With the process that holds the template of its memory, if it is a clone.
        holder: Option<Connection>,
    },
}

/// The memory of a guest that was saved.
pub enum SavedMemory {
    /// It is loaded before the guest runs.
    Eager(MemoryReader),
    /// It is loaded as it is touched, the working set before if that is known.
    Lazy(MemoryReader, WorkingSet),
    /// It is a template's, and each page is copied when the guest writes to it.
    Shared(Template),
}

impl SavedMemory {
    fn restore(
        self,
        ram: &GuestRam,
        tags: Option<&TagReservation>,
    ) -> Result<(Option<LazyMemory>, Option<Connection>), Error> {
        match self {
            Self::Eager(reader) => {
                snapshot::load_memory(&Destination::new(ram), &reader, &mut |_| {})?;
                Ok((None, None))
            }
            Self::Lazy(reader, working_set) => {
                Ok((Some(LazyMemory::start(ram, reader, working_set, tags)?), None))
            }
            Self::Shared(template) => Ok((None, Some(template.map(ram)?))),
        }
    }
}

impl Origin {
    /// The size of the guest's pages.
    pub(super) fn guest_page(&self) -> Bytes {
        match self {
            Self::Kernel { loaded, .. } => loaded.guest_page,
            Self::Saved { state, .. } => state.guest_page,
        }
    }

    /// Whether its memory is loaded as it is touched.
    fn is_lazy(&self) -> bool {
        matches!(self, Self::Saved { lazy: Some(_), .. })
    }

    /// The first of the vCPUs that were saved, and their interrupt controller.
    fn saved_cpus(&self) -> Option<(&VcpuState, &GicState)> {
        match self {
            Self::Kernel { .. } => None,
            Self::Saved { state, .. } => state.vcpus.first().map(|vcpu| (vcpu, &state.gic)),
        }
    }
}

/// Whether the guest has MTE, and why not.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Mte {
    /// It has.
    On,
    /// It was not to have it.
    Off,
    /// The host cannot give it, for this reason.
    Unavailable(String),
}

impl Board {
    /// Makes a VM by its description: host, memory, kernel, vCPUs, interrupt controller.
    ///
    /// # Errors
    /// When the host cannot give what the description asks for, or a file cannot be loaded.
    pub fn new(spec: &Spec, host: &dyn Hypervisor) -> Result<Self, Error> {
        let (kernel, initrd) = (&*spec.kernel, spec.initrd.as_deref());
        let image = match spec.boot_image {
            true => Some(SharedBootImage::connect(kernel, initrd)?),
            false => None,
        };
        let caches = caches::read().ok();
        let fdt_room = arch::fdt::room(spec.cpus, caches.as_ref());
        let board = Self::make(spec, host, caches, |ram, _| {
            let (loaded, holder) = match image {
                None => (memory::load(ram, kernel, initrd, fdt_room)?, None),
                Some(image) => {
                    let (loaded, holder) = image.load(ram, kernel, fdt_room)?;
                    (loaded, Some(holder))
                }
            };
            if spec.tag_storage.is_some() {
                touch(ram, loaded.fdt)?;
            }
            Ok(Origin::Kernel { loaded, holder })
        })?;
        board.check_placement(spec.boot_image, Error::BootImageOnNode)
    }

    /// Makes the VM of a saved state, with its memory. The description is that of the VM that was saved.
    ///
    /// # Errors
    /// When the host cannot give what the VM had, or its memory cannot be loaded.
    pub fn restored(
        spec: &Spec,
        host: &dyn Hypervisor,
        state: MachineState,
        memory: SavedMemory,
    ) -> Result<Self, Error> {
        let mte = if state.mte { MteMode::Require } else { MteMode::Off };
        let spec = Spec { mte, ..spec.clone() };
        let shared = matches!(memory, SavedMemory::Shared(_));
        // Its device tree, which names caches, is in its memory.
        let board = Self::make(&spec, host, None, |ram, tags| {
            let (lazy, holder) = memory.restore(ram, tags)?;
            Ok(Origin::Saved { state: Box::new(state), lazy, holder })
        })?;
        board.check_placement(shared, Error::SharedOnNode)
    }

    /// Refuses a board of which some memory is `shared`, if its memory is to be kept off a node at times: the rule that
    /// does so is that of its mappings, which a template's take the place of.
    fn check_placement(self, shared: bool, refused: Error) -> Result<Self, Error> {
        let kept_off = self.placement.as_ref().is_some_and(BorrowerLease::is_on_node)
            || self.tags.as_ref().is_some_and(TagReservation::is_on_node);
        match shared && kept_off {
            true => Err(refused),
            false => Ok(self),
        }
    }

    fn make(
        spec: &Spec,
        host: &dyn Hypervisor,
        caches: Option<CacheTopology>,
        fill: impl FnOnce(&GuestRam, Option<&TagReservation>) -> Result<Origin, Error>,
    ) -> Result<Self, Error> {
        host.check_cpus(spec.cpus)?;
        let (mut vm, mte) = create_vm(host, spec)?;
        // Before the first touch of guest memory.
        let tags = spec.tag_storage.as_ref().filter(|_| mte == Mte::On);
        let tags =
            tags.map(|wanted| TagReservation::new(wanted, &spec.id, vm.ram())).transpose()?;
        let lender = spec.lender.as_ref().filter(|_| mte != Mte::On);
        let placement = lender
            .map(|broker| BorrowerLease::new(broker, &spec.id, vm.ram(), spec.lock_memory))
            .transpose()?;
        let origin = fill(vm.ram(), tags.as_ref())?;
        if let Some(tags) = &tags {
            tags.reserve_for_shared(vm.ram())?;
        }
        // What is loaded as it is touched is loaded for the devices first.
        if let Some(tags) = tags.as_ref().filter(|_| !origin.is_lazy()) {
            tags.finish_loading()?;
        }
        if spec.lock_memory {
            vm.ram().lock()?;
        }
        let saved = origin.saved_cpus();
        let interrupts = interrupt_count(layout::last_spi(spec.virtio_devices()));
        let request = CpuRequest { count: spec.cpus, pmu: spec.pmu, interrupts, saved };
        let cpus = vm.create_vcpus(&request)?;
        let caches =
            caches.filter(|caches| cpus.clidr.is_some_and(|clidr| caches.check(clidr).is_ok()));
        Ok(Self { vm, cpus, caches, origin, mte, tags, placement, base: None })
    }

    /// The description's command line, with the order in which the guest reports free memory if its
    /// kernel's own does not suit it.
    pub fn command_line(&self, spec: &Spec) -> String {
        // A guest that was saved has read its own.
        let Origin::Kernel { loaded, .. } = &self.origin else { return spec.command_line.clone() };
        let offered = spec.balloon.is_some_and(|balloon| balloon.reporting) && !spec.lock_memory;
        if !offered || spec.bare_command_line {
            return spec.command_line.clone();
        }
        let page = self.vm.ram().backing().page_size();
        let (line, note) =
            reporting::prepare(&spec.command_line, spec.memory, loaded.guest_page, page);
        if let Some(note) = note {
            say(&note);
        }
        line
    }

    /// The description's disks, as this guest's memory allows them.
    pub fn disks(&self, spec: &Spec) -> Vec<DiskSpec> {
        match self.placement.as_ref().is_some_and(BorrowerLease::is_lent_to) {
            true => through_the_cache(&spec.disks),
            false => spec.disks.clone(),
        }
    }

    /// Whether the guest has MTE.
    pub fn mte(&self) -> &Mte {
        &self.mte
    }
}

/// The disks of a guest whose memory may be in tag storage. Past the page cache the kernel pins guest memory, and what
/// is pinned cannot leave tag storage when its owner wants that back.
fn through_the_cache(disks: &[DiskSpec]) -> Vec<DiskSpec> {
    let mut disks = disks.to_vec();
    for disk in disks.iter_mut().filter(|disk| disk.direct) {
        disk.direct = false;
        say(&format!(
            "the disk {} goes through the page cache, and not past it: this guest's memory may be in tag storage \
             that others lend, and a direct disk would keep it there",
            disk.id
        ));
    }
    disks
}

/// Creates the VM and its memory, with MTE if it is wanted and can be had. Whether it can is known only when
/// the memory is mapped and given to the hypervisor: that depends on the kernel and on the kind of memory.
fn create_vm(host: &dyn Hypervisor, spec: &Spec) -> Result<(Box<dyn Vm>, Mte), Error> {
    let with = |tags| create_vm_with(host, spec, tags);
    match (spec.mte, host.mte()) {
        (MteMode::Off, _) => Ok((with(false)?, Mte::Off)),
        (MteMode::Require, Err(missing)) => Err(hypervisor::Error::MteMissing(missing).into()),
        (MteMode::Auto, Err(missing)) => Ok((with(false)?, Mte::Unavailable(missing.to_owned()))),
        (mode, Ok(())) => match with(true) {
            Err(error) if mode == MteMode::Auto && error.is_lack_of_mte() => {
                Ok((with(false)?, Mte::Unavailable(chain(&error))))
            }
            created => Ok((created?, Mte::On)),
        },
    }
}

fn create_vm_with(host: &dyn Hypervisor, spec: &Spec, tags: bool) -> Result<Box<dyn Vm>, Error> {
    let ipa_bits = host.ipa_bits_for(spec.memory)?;
    let attributes = Attributes {
        tags,
        huge_pages: spec.huge_pages == HugePages::Transparent,
        backing: match spec.backing {
            MemoryBacking::Anonymous => Backing::Anonymous,
            MemoryBacking::Memfd => Backing::Memfd,
            MemoryBacking::Hugetlbfs => Backing::Hugetlbfs { page: HUGE_PAGE },
        },
    };
    let ram = GuestRam::new(spec.memory, attributes)?;
    Ok(host.create_vm(ipa_bits, ram, tags)?)
}

/// Has both ends of a small range populated, and so all of it.
fn touch(ram: &GuestRam, range: MemoryRange) -> Result<(), Error> {
    let last = range.size.get().saturating_sub(1);
    for at in [range.base.0, range.base.0.saturating_add(last)] {
        ram.write_obj(0u8, GuestAddress(at)).map_err(Error::WriteFdt)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::RateLimiterSpec;

    #[test]
    fn no_disk_of_a_guest_in_lent_memory_passes_the_page_cache_by() {
        let disk = |id: &str, direct| DiskSpec {
            id: id.to_owned(),
            path: id.into(),
            root: false,
            partuuid: None,
            read_only: true,
            direct,
            rate_limiter: RateLimiterSpec::default(),
        };
        let asked = [disk("cached", false), disk("direct", true)];

        let given = through_the_cache(&asked);

        assert_eq!(given, [disk("cached", false), disk("direct", false)]);
    }
}
