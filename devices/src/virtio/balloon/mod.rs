//! Traditional memory balloon (section 5.5): memory that a guest does not need goes back to the host.
//!
//! | queue | what the driver says | what the device does |
//! |---|---|---|
//! | inflate | these pages are the balloon's | gives them back, in whole pages of the host |
//! | deflate | these pages are mine again | forgets them; the host gives memory when they are touched |
//! | statistics | how my memory does | keeps the buffer; returning it asks for the next |
//! | reporting | these pages are free | gives them back before it answers; the driver says no more |
//!
//! # Order
//! A driver may use reported pages again as soon as their chain is completed, and inflated ones when it
//! has named them on the deflate queue, without waiting for an answer. So [`Reclaim::discard`] always
//! returns before the chain is completed.
//!
//! A page of the host that is larger than 4 KiB can arrive in parts, over several chains, and be discarded with the
//! last, and so can a huge page, whose parts wait for each other: they must still be the balloon's then. So MUST_TELL_HOST
//! is offered, with which a driver waits for the answer to its deflation (5.5.6.1 and 5.5.6.2). Linux always accepts
//! it, and always waits. With another driver only what comes in one chain is discarded, and nothing is renewed.
//!
//! # Poison
//! A driver whose kernel fills free pages, to find stray writes (`page_poison`) or to keep secrets
//! (`init_on_free`), reports pages only if PAGE_POISON is offered, so it always is. With it, a
//! reported page must not be changed to anything but `poison_val` (5.5.6.7). A discarded page reads
//! zero: with `poison_val` 0 a discard changes nothing, and with any other value reported pages are
//! kept. Inflated pages are discarded whatever `poison_val` is: their contents may be changed until
//! the request is answered (5.5.6.2), and a driver that takes them back fills them itself (5.5.6.6).
//!
//! # Free page hinting is not offered
//! A driver may take a hinted page back and write to it at any time, even before the device has seen
//! the hint (5.5.6.5). The device may change such a page only if the guest has not written to it
//! since; it cannot find that out and discard in one step, and a discard that comes late destroys what
//! the guest has written. Devices that discard on hints, as deployed, have this race. The
//! specification has no form of hinting in which the driver waits for an answer, as it does with a
//! report.

mod config;
mod counters;
mod gathered;
mod pages;
mod payload;
mod ranges;
mod state;
mod statistics;

pub use counters::Counters;
pub use state::State;
pub use statistics::Statistics;

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use vm_memory::GuestMemory;

use self::config::Space;
use self::counters::count;
use self::gathered::Gathered;
use self::pages::{Change, Held, PAGE, Pages, Pfn};
use super::{Broken, Buffer, Chain, Device, DeviceId, Features, Head, Ring};
use crate::ports::{GuestRange, Reclaim};

impl Features {
    /// The driver waits before it uses pages of the balloon (VIRTIO_BALLOON_F_MUST_TELL_HOST).
    pub const BALLOON_MUST_TELL_HOST: Self = Self(1 << 0);
    /// The balloon has a queue for statistics (VIRTIO_BALLOON_F_STATS_VQ).
    pub const BALLOON_STATS_VQ: Self = Self(1 << 1);
    /// The driver may take pages back when the guest runs out of memory
    /// (VIRTIO_BALLOON_F_DEFLATE_ON_OOM).
    pub const BALLOON_DEFLATE_ON_OOM: Self = Self(1 << 2);
    /// The driver says what it fills free pages with (VIRTIO_BALLOON_F_PAGE_POISON).
    pub const BALLOON_PAGE_POISON: Self = Self(1 << 4);
    /// The balloon has a queue for reports of free pages (VIRTIO_BALLOON_F_PAGE_REPORTING).
    pub const BALLOON_PAGE_REPORTING: Self = Self(1 << 5);
}

/// The greatest size of each queue. Linux wants at least 32 for reports (`PAGE_REPORTING_CAPACITY`
/// in `include/linux/page_reporting.h`) and puts one chain at a time on each queue.
const QUEUE_SIZES: [u16; 4] = [128; 4];

/// The longest list of pages in one chain, in bytes: 64 MiB of guest memory. Linux sends 1 KiB
/// (`VIRTIO_BALLOON_ARRAY_PFNS_MAX`).
const LONGEST_LIST: usize = 64 << 10;

/// Pages listed after which a turn is over, whatever chains are left: each can be a discard of its own,
/// while the thread has others to serve and vCPUs may want the device.
const PAGES_A_TURN: usize = LONGEST_LIST / size_of::<u32>();

/// Reported memory after which a turn is over, in bytes: the host frees each page of it.
const REPORTED_A_TURN: u64 = 4 << 30;

/// Huge pages that are renewed in a turn of the inflate queue at most: each takes the host as long as some pages that
/// are given back, and a list can make as many whole as it has pages. The others stay in small pages.
const RENEWED_A_TURN: u64 = 256;

/// Pages in a list after which a driver may have more to give at once: Linux sends as many as it has room for
/// (`VIRTIO_BALLOON_ARRAY_PFNS_MAX`).
const FULL_LIST: usize = 256;

/// What a queue is for.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Role {
    /// The driver gives pages to the balloon.
    Inflate,
    /// The driver takes pages back.
    Deflate,
    /// The driver sends statistics.
    Statistics,
    /// The driver reports free pages.
    Reporting,
}

/// How a balloon starts.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct BalloonConfig {
    /// Free page reporting is offered, and on. What is not offered can never be switched on: offer it
    /// and switch it off ([`Balloon::set_reporting`]) if it may be wanted later.
    pub reporting: bool,
    /// The driver may take pages back when the guest runs out of memory.
    pub deflate_on_oom: bool,
    /// Guest memory that the balloon should hold, in bytes.
    pub target: u64,
}

/// A memory balloon.
pub struct Balloon {
    offered: Features,
    ram: GuestRange,
    reclaim: Box<dyn Reclaim>,
    counters: Arc<Counters>,
    reporting: bool,
    space: Space,
    /// What the driver acknowledged, once it is ready.
    acked: Option<Features>,
    pages: Pages,
    /// Those that are not given back yet.
    gathered: Gathered,
    /// A full list came since the driver last said what it has.
    may_go_on: bool,
    /// The rest of what is gathered does not come: it is given back as it is.
    is_due: bool,
    statistics: Option<Statistics>,
    /// What the driver said it had when they came, in pages of 4 KiB.
    actual_then: u32,
    /// The statistics' buffer that waits for a request.
    held: Option<Head>,
    requested: bool,
}

impl Balloon {
    /// A balloon for guest memory within `ram`, which gives pages back through `reclaim`.
    pub fn new(config: BalloonConfig, reclaim: Box<dyn Reclaim>, ram: GuestRange) -> Self {
        let mut offered = Features::BALLOON_STATS_VQ
            .with(Features::BALLOON_PAGE_POISON)
            .with(Features::BALLOON_MUST_TELL_HOST);
        if config.deflate_on_oom {
            offered = offered.with(Features::BALLOON_DEFLATE_ON_OOM);
        }
        if config.reporting {
            offered = offered.with(Features::BALLOON_PAGE_REPORTING);
        }
        let pages = Pages::new(ram, reclaim.page_size(), reclaim.huge_page_size());
        let mut balloon = Self {
            offered,
            ram,
            reclaim,
            counters: Arc::default(),
            reporting: config.reporting,
            space: Space::default(),
            acked: None,
            pages,
            gathered: Gathered::default(),
            may_go_on: false,
            is_due: false,
            statistics: None,
            actual_then: 0,
            held: None,
            requested: false,
        };
        balloon.set_target(config.target);
        balloon
    }

    /// The balloon's counters.
    pub fn counters(&self) -> Arc<Counters> {
        self.counters.clone()
    }

    /// Guest memory that the balloon should hold, in bytes: a multiple of 4 KiB, at most all of it.
    pub fn target(&self) -> u64 {
        u64::from(self.space.num_pages) * PAGE
    }

    /// Changes [`Balloon::target`]: down to a multiple of 4 KiB, and to the size of guest memory.
    /// Whether configuration space has changed: then call
    /// [`Transport::config_changed`](super::mmio::Transport::config_changed).
    pub fn set_target(&mut self, bytes: u64) -> bool {
        let num_pages = u32::try_from(bytes.min(self.ram.length) / PAGE).unwrap_or(u32::MAX);
        let old = std::mem::replace(&mut self.space.num_pages, num_pages);
        // A driver that has what it is to have says nothing more.
        if self.pages.bytes() >= self.target() {
            self.give_gathered();
        }
        old != num_pages
    }

    /// Whether a target of so many pages can be set.
    fn is_target(&self, pages: u32) -> bool {
        u64::from(pages) <= self.ram.length / PAGE
    }

    /// Guest memory that the driver says is in the balloon, in bytes up to 16 TiB. It is the driver's
    /// word; [`Counters::inflated`] is what it has really put there.
    pub fn actual(&self) -> u64 {
        u64::from(self.space.actual) * PAGE
    }

    /// Whether reported pages are given back, where the driver reports any.
    pub fn reporting(&self) -> bool {
        self.reporting
    }

    /// Switches reporting on or off. While it is off reports are answered and the pages are kept.
    pub fn set_reporting(&mut self, on: bool) {
        self.reporting = on;
    }

    /// Asks the driver for new statistics when the queue is served next.
    ///
    /// If no buffer of the driver's is here then, nothing is asked: its answer to an earlier request is
    /// on its way.
    pub fn request_statistics(&mut self) {
        self.requested = true;
    }

    /// The latest statistics since the reset, if there are any.
    pub fn statistics(&self) -> Option<&Statistics> {
        self.statistics.as_ref()
    }

    /// [`Balloon::actual`] when they came, which is what they go with: the balloon may have changed since.
    pub fn actual_at_statistics(&self) -> u64 {
        u64::from(self.actual_then) * PAGE
    }

    /// What the driver fills free pages with, if it does and is ready.
    pub fn poison(&self) -> Option<u32> {
        let poisons = self.acked?.contains(Features::BALLOON_PAGE_POISON);
        poisons.then_some(self.space.poison_val)
    }

    /// The features that the driver acknowledged, if it is ready.
    pub fn driver_features(&self) -> Option<Features> {
        self.acked
    }

    /// What a queue is for, if the driver is ready and has such a queue.
    pub fn role(&self, queue: usize) -> Option<Role> {
        self.roles().nth(queue)
    }

    /// The queue for a role, if the driver is ready and has one.
    pub fn queue_of(&self, role: Role) -> Option<usize> {
        self.roles().position(|other| other == role)
    }

    /// The roles in the order of the queues. The specification gives each its number (5.5.2); Linux
    /// leaves out the queues of features that it has not acknowledged and counts on (`vm_find_vqs` in
    /// `drivers/virtio/virtio_mmio.c`), and devices follow it.
    fn roles(&self) -> impl Iterator<Item = Role> {
        let has = |feature| self.acked.is_some_and(|acked| acked.contains(feature));
        [
            (Role::Inflate, self.acked.is_some()),
            (Role::Deflate, self.acked.is_some()),
            (Role::Statistics, has(Features::BALLOON_STATS_VQ)),
            (Role::Reporting, has(Features::BALLOON_PAGE_REPORTING)),
        ]
        .into_iter()
        .filter_map(|(role, present)| present.then_some(role))
    }

    fn inflate<M: GuestMemory>(&mut self, ring: &mut Ring<'_, M>) -> Result<(), Broken> {
        let held = match self.acked.unwrap_or_default().contains(Features::BALLOON_MUST_TELL_HOST) {
            true => Held::UntilDeflated,
            false => Held::UntilAnswered,
        };
        let mut listed = 0;
        let mut renewals = RENEWED_A_TURN;
        if self.is_due {
            self.give_gathered();
        }
        while let Some((head, mut pfns)) = take_list(ring, &mut listed)? {
            let change = self.pages.insert(&mut pfns, held);
            count(&self.counters.outside, change.outside);
            count(&self.counters.inflated, change.changed);
            self.may_go_on = pfns.len() >= FULL_LIST;
            self.give(&change, held);
            change.huge.iter().for_each(|range| self.renew(*range, &mut renewals));
            ring.complete(head, 0)?;
        }
        Ok(())
    }

    fn deflate<M: GuestMemory>(&mut self, ring: &mut Ring<'_, M>) -> Result<(), Broken> {
        let mut listed = 0;
        self.give_gathered();
        while let Some((head, pfns)) = take_list(ring, &mut listed)? {
            let change = self.pages.remove(&pfns);
            count(&self.counters.outside, change.outside);
            self.counters.inflated.store(self.pages.bytes(), Ordering::Relaxed);
            ring.complete(head, 0)?;
        }
        Ok(())
    }

    /// The driver has one buffer for statistics. It is kept, for its return is what asks the driver to
    /// fill it again (5.5.6.3).
    fn update_statistics<M: GuestMemory>(&mut self, ring: &mut Ring<'_, M>) -> Result<(), Broken> {
        if std::mem::take(&mut self.requested)
            && let Some(head) = self.held.take()
        {
            ring.complete(head, 0)?;
        }
        while let Some(chain) = ring.take()? {
            let bytes = payload::read(ring.memory(), chain.buffers()?, statistics::LONGEST)?;
            // A driver may begin with an empty buffer (5.5.5).
            if !bytes.is_empty() {
                self.statistics = Some(Statistics::parse(&bytes));
                self.actual_then = self.space.actual;
                count(&self.counters.statistics, 1);
            }
            // A driver with two buffers breaks its rules, not the device: the older has served.
            if let Some(head) = self.held.replace(chain.head()) {
                ring.complete(head, 0)?;
            }
        }
        Ok(())
    }

    fn report<M: GuestMemory>(&mut self, ring: &mut Ring<'_, M>) -> Result<(), Broken> {
        let mut reported = 0;
        while let Some(chain) = ring.take()? {
            let free = self.reported(&chain);
            let bytes = ranges::total(&free);
            reported += bytes;
            if reported >= REPORTED_A_TURN {
                ring.end_turn();
            }
            if self.poison().is_some_and(|value| value != 0) {
                count(&self.counters.poison_skipped, bytes);
            } else if !self.reporting {
                count(&self.counters.kept, bytes);
            } else {
                self.reclaim.begin_report(bytes);
                self.discard(&free);
            }
            let completed = ring.complete(chain.head(), 0);
            self.reclaim.end_report();
            completed?;
        }
        Ok(())
    }

    /// The guest memory that a chain reports. Each buffer is a range of free memory: nothing is read
    /// or written there, so neither its direction nor its length can be wrong.
    ///
    /// A chain is no longer than 4 GiB (2.7.5.2), but Linux with pages of 64 KiB reported up to 16 GiB in
    /// one before 5.14, and does if `page_reporting_order` says so. The chain is read up to there, and
    /// what comes after is kept.
    fn reported(&self, chain: &Chain) -> Vec<GuestRange> {
        let mut outside = 0;
        let inside = chain.leading_buffers().iter().filter_map(|buffer: &Buffer| {
            let length = u64::from(buffer.length);
            let part = ranges::clip(GuestRange { start: buffer.address, length }, self.ram);
            outside += length - part.map_or(0, |part| part.length);
            part
        });
        let free = ranges::merge(inside.collect());
        count(&self.counters.reports, 1);
        count(&self.counters.reported, ranges::total(&free));
        count(&self.counters.outside, outside);
        free
    }

    /// Gives back what came with a list: at once, or with the rest of its huge pages.
    fn give(&mut self, change: &Change, held: Held) {
        match self.reclaim.huge_page_size() {
            Some(huge) if held == Held::UntilDeflated => {
                let due = self.gathered.add(&change.whole, &change.huge, huge);
                self.discard(&due);
                if !self.may_go_on || self.pages.bytes() >= self.target() {
                    self.give_gathered();
                }
            }
            _ => self.discard(&change.whole),
        }
    }

    /// Gives back what waits for the rest of its huge page.
    fn give_gathered(&mut self) {
        self.is_due = false;
        let pages = self.gathered.take();
        self.discard(&pages);
    }

    /// Renews huge pages, as many as there are left in this turn.
    fn renew(&mut self, range: GuestRange, left: &mut u64) {
        let Some(huge) = self.reclaim.huge_page_size() else { return };
        let count = (range.length / huge).min(*left);
        *left -= count;
        if count > 0 {
            self.reclaim.renew(GuestRange { length: count * huge, ..range });
        }
    }

    fn discard(&mut self, ranges: &[GuestRange]) {
        for range in ranges {
            let outcome = self.reclaim.discard(*range);
            count(&self.counters.discarded, outcome.discarded);
            count(&self.counters.failed, outcome.failed);
        }
    }
}

impl Device for Balloon {
    fn id(&self) -> DeviceId {
        DeviceId::BALLOON
    }

    fn features(&self) -> Features {
        self.offered
    }

    fn queue_sizes(&self) -> &[u16] {
        match self.offered.contains(Features::BALLOON_PAGE_REPORTING) {
            true => &QUEUE_SIZES,
            false => &QUEUE_SIZES[1..],
        }
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        self.space.read(offset, data);
    }

    fn write_config(&mut self, offset: u64, data: &[u8]) -> Option<usize> {
        self.space.write(offset, data);
        // Linux says what it has after each list, and again each time that it finds no memory to list.
        let is_over = !std::mem::take(&mut self.may_go_on);
        self.is_due |= is_over && !self.gathered.is_empty();
        self.is_due.then(|| self.queue_of(Role::Inflate)).flatten()
    }

    fn activate(&mut self, acked: Features) {
        self.acked = Some(acked);
    }

    fn serve<M: GuestMemory>(
        &mut self,
        queue: usize,
        ring: &mut Ring<'_, M>,
    ) -> Result<(), Broken> {
        match self.role(queue) {
            Some(Role::Inflate) => self.inflate(ring),
            Some(Role::Deflate) => self.deflate(ring),
            Some(Role::Statistics) => self.update_statistics(ring),
            Some(Role::Reporting) => self.report(ring),
            // One more than the driver's features have: it has no role.
            None => Ok(()),
        }
    }

    /// The balloon is empty then: a driver that starts again begins with all of the memory. The target
    /// and the switch of reporting are the host's and stay.
    fn reset(&mut self) {
        self.acked = None;
        self.space.actual = 0;
        self.space.poison_val = 0;
        self.pages.clear();
        self.gathered = Gathered::default();
        self.may_go_on = false;
        self.is_due = false;
        self.counters.inflated.store(0, Ordering::Relaxed);
        self.statistics = None;
        self.actual_then = 0;
        self.held = None;
        self.requested = false;
    }
}

/// The next list of pages on a queue. `listed` are the pages of those before it in this turn.
fn take_list<M: GuestMemory>(
    ring: &mut Ring<'_, M>,
    listed: &mut usize,
) -> Result<Option<(Head, Vec<Pfn>)>, Broken> {
    let Some(chain) = ring.take()? else { return Ok(None) };
    let pfns = pfns(ring.memory(), chain.buffers()?)?;
    *listed += pfns.len();
    if *listed >= PAGES_A_TURN {
        ring.end_turn();
    }
    Ok(Some((chain.head(), pfns)))
}

/// The pages that a chain lists, in its order.
fn pfns<M: GuestMemory>(memory: &M, buffers: &[Buffer]) -> Result<Vec<Pfn>, Broken> {
    let length = payload::length(buffers);
    if length > LONGEST_LIST as u64 {
        return Err(Broken::Form("a list of pages for the balloon is longer than 64 KiB"));
    }
    if !length.is_multiple_of(size_of::<u32>() as u64) {
        return Err(Broken::Form("a list of pages for the balloon ends in the middle of a number"));
    }
    let bytes = payload::read(memory, buffers, LONGEST_LIST)?;
    let words = bytes.chunks_exact(size_of::<u32>()).filter_map(|word| word.first_chunk());
    Ok(words.map(|word| Pfn(u32::from_le_bytes(*word))).collect())
}

impl fmt::Debug for Balloon {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Balloon")
            .field("offered", &self.offered)
            .field("acked", &self.acked)
            .field("space", &self.space)
            .field("reporting", &self.reporting)
            .field("counters", &self.counters)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
