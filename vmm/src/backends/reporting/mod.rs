//! Page reporting: in which units a Linux guest gives free memory back, and why it may give nothing.
//!
//! Nothing here touches a device or the host. The VMM asks before the guest starts ([`prepare`],
//! [`forecast`]) and while it runs ([`diagnosis`]).
//!
//! # References
//! - virtio 1.2, section 5.5.6 (free page reporting, page poison)
//! - Linux `mm/page_reporting.c`, `drivers/virtio/virtio_balloon.c`
//! - Linux `kernel/params.c`, `lib/cmdline.c` (how parameters are told apart)

mod diagnosis;

use std::iter;

use arch::fdt::MAX_COMMAND_LINE;
use arch::layout::CHUNK;
use arch::units::Bytes;

pub use diagnosis::{Diagnosis, DriverState, ReportingConfig, Running, diagnosis, forecast};

/// The kernel parameter that sets the order, since Linux 5.14.
const PARAMETER: &str = "page_reporting.page_reporting_order";

/// How many units Linux reports at once (PAGE_REPORTING_CAPACITY). It leaves a zone alone unless this
/// many and the low watermark are free in it.
const BATCH: u64 = 32;

/// A batch is to be at most this part of the guest's memory, so that small guests report as well. Linux's
/// default of 2 MiB a unit keeps to it from 512 MiB up.
const SHARE: u64 = 8;
/// The same of a smaller guest. What it keeps beyond need is a unit for each of a few stray pages: with
/// units of 1 MiB that was 6 % of what 256 MiB take when idle, with half of that 3 %.
const SMALL_SHARE: u64 = 16;

/// The largest order of any page size (64 KiB pages), and so the largest that the parameter takes.
const MAX_ORDER: u8 = 13;

/// The order to give a guest, or `None` where Linux's own is that already.
///
/// An order of n reports units of 2^n guest pages. This is the largest one whose unit is at most a
/// [`CHUNK`], which keeps huge pages whole, and of which 32 units are at most an eighth of `memory`, a
/// sixteenth below 512 MiB. The unit is never smaller than `granularity`, the size of the pages that guest
/// memory is made of, even where that breaks the other two rules: less than a page cannot be given back. It
/// is `None`, too, where `granularity` is beyond what a guest with `guest_page` can report at all.
pub fn order(memory: Bytes, guest_page: Bytes, granularity: Bytes) -> Option<u8> {
    best(memory, guest_page, granularity).filter(|best| *best != default_order(guest_page))
}

/// The order that Linux uses unless a parameter names another: that of a pageblock, but with 64 KiB pages the
/// one that its balloon driver asks for.
pub fn default_order(guest_page: Bytes) -> u8 {
    match page_shift(guest_page) {
        16 => 5,
        shift => pmd_order(shift),
    }
}

/// The order that a guest with this command line uses: the last that it would take, or its default.
pub fn in_effect(command_line: &str, guest_page: Bytes) -> u8 {
    let largest = largest_order(guest_page);
    orders(command_line)
        .filter(|order| *order <= largest)
        .last()
        .unwrap_or_else(|| default_order(guest_page))
}

/// The command line for a guest that is offered reporting, and what to report to its user about that.
///
/// It sets the [`order`] unless Linux's own will do, or the line sets one.
pub fn prepare(
    line: &str,
    memory: Bytes,
    guest_page: Bytes,
    granularity: Bytes,
) -> (String, Option<String>) {
    let wanted = given(line).is_none().then(|| order(memory, guest_page, granularity)).flatten();
    let Some(order) = wanted else { return (line.to_owned(), None) };
    let longer = with_order(line, order);
    match longer.len().checked_sub(MAX_COMMAND_LINE).filter(|excess| *excess > 0) {
        None => {
            let unit = unit(order, guest_page);
            let note = format!(
                "a guest of {memory} is configured to report free memory in units of {unit}, reporting order {order}"
            );
            (longer, Some(note))
        }
        Some(excess) => {
            let note = format!(
                "the command line has no room for reporting order {order}, which a guest of {memory} should \
                 have: shorten it by {excess} characters"
            );
            (line.to_owned(), Some(note))
        }
    }
}

/// The order that a command line sets, if it does. Such a choice is the user's and stands.
fn given(command_line: &str) -> Option<u8> {
    orders(command_line).last()
}

/// A command line that sets the order, before everything else so that it replaces nothing.
fn with_order(command_line: &str, order: u8) -> String {
    format!("{PARAMETER}={order} {command_line}").trim_end().to_owned()
}

/// Bytes of a unit of this order.
pub fn unit(order: u8, guest_page: Bytes) -> Bytes {
    // 16 and 13 at most: far from 64 bits.
    Bytes::new(1 << (page_shift(guest_page) + order.min(MAX_ORDER)))
}

/// What must be free in a zone of the guest, beside its low watermark, before anything is reported.
pub fn batch(order: u8, guest_page: Bytes) -> Bytes {
    Bytes::new(unit(order, guest_page).get() * BATCH)
}

/// [`order`], Linux's default included.
fn best(memory: Bytes, guest_page: Bytes, granularity: Bytes) -> Option<u8> {
    let all = || 0..=largest_order(guest_page);
    let least = all().find(|order| unit(*order, guest_page) >= granularity)?;
    let small = memory.get() / SHARE < CHUNK.get() * BATCH;
    let most = memory.get() / if small { SMALL_SHARE } else { SHARE };
    let fits =
        |order: &u8| unit(*order, guest_page) <= CHUNK && batch(*order, guest_page).get() <= most;
    Some(all().rev().find(fits).unwrap_or(0).max(least))
}

/// MAX_PAGE_ORDER: the largest free block that Linux keeps (arch/arm64/Kconfig, ARCH_FORCE_MAX_ORDER).
fn largest_order(guest_page: Bytes) -> u8 {
    pmd_order(page_shift(guest_page)).max(10)
}

/// A table of 8-byte entries fills a page, so a level above it maps page/8 pages.
fn pmd_order(page_shift: u8) -> u8 {
    page_shift - 3
}

/// arm64 has pages of 4, 16 and 64 KiB; another size is taken as the nearest of them below.
fn page_shift(page: Bytes) -> u8 {
    match page.get() {
        0..0x4000 => 12,
        0x4000..0x1_0000 => 14,
        _ => 16,
    }
}

/// Every order that a command line sets and that some kernel takes, in its order.
fn orders(command_line: &str) -> impl Iterator<Item = u8> {
    words(command_line)
        // What follows is for the guest's init.
        .take_while(|word| *word != "--")
        .filter_map(|word| {
            let word = word.replace('"', "");
            let (name, value) = word.split_once('=')?;
            // To Linux, dashes and underscores in names are the same.
            (name.replace('-', "_") == PARAMETER).then(|| number(value))?
        })
        .filter(|order| *order <= MAX_ORDER)
}

/// The words of a command line; spaces between quotes separate nothing.
fn words(command_line: &str) -> impl Iterator<Item = &str> {
    let mut rest = command_line;
    iter::from_fn(move || {
        rest = rest.trim_ascii_start();
        let mut quoted = false;
        let end = rest.find(|c: char| {
            quoted ^= c == '"';
            c.is_ascii_whitespace() && !quoted
        });
        let (word, after) = rest.split_at(end.unwrap_or(rest.len()));
        rest = after;
        (!word.is_empty()).then_some(word)
    })
}

/// A number as Linux reads it (kstrtouint): decimal, or octal after 0, or hexadecimal after 0x.
fn number(text: &str) -> Option<u8> {
    let text = text.strip_prefix('+').unwrap_or(text);
    let (digits, radix) = match text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        Some(digits) => (digits, 16),
        None if text.len() > 1 && text.starts_with('0') => (text, 8),
        None => (text, 10),
    };
    // Rust would take a second sign.
    let plain = digits.bytes().all(|byte| byte.is_ascii_hexdigit());
    plain.then(|| u8::from_str_radix(digits, radix).ok())?
}

#[cfg(test)]
mod tests;
