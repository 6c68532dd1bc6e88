//! What a fault on guest memory costs, in instructions: a kernel of a few words touches a range of its memory and reads the
//! counter before and after. It does nothing else, so that what two touches differ by is what the host does for them.
//!
//! The kernel runs without its MMU, and the test reads and writes its memory as the host's. That agrees where there are no
//! caches, as in an emulated host.

use std::fs::{File, OpenOptions};
use std::ops::Range;
use std::os::unix::fs::FileExt;

use arch::layout::{CHUNK, RAM_BASE};
use vm_memory::Address;

use crate::bare;
use crate::guest::{Guest, Plan};
use crate::memory::tagged_ram;
use crate::scratch::Scratch;
use crate::wait::until;

/// What the guest's memory has, and where in it the touched range and the table of orders are. In bytes.
const MEMORY: u64 = 256 << 20;
const TOUCHED: Range<u64> = 64 << 20..192 << 20;
const TABLE: u64 = 32 << 20;

/// An order in the table: a stride in bytes, and where its answer is to be.
const ENTRY: u64 = 16;
const ANSWER: u64 = 8;

/// Chunks that are touched.
pub const CHUNKS: u64 = (TOUCHED.end - TOUCHED.start) / CHUNK.get();

/// The code. x1: start of the range, x2: its end, x9: the entry of the table that is next.
fn code() -> Vec<u32> {
    let address = |offset: u64| RAM_BASE.raw_value() + offset;
    let mut code = vec![
        // ldr x1, start; ldr x2, end; ldr x9, table: out of what follows the code.
        literal(0, 22, 1),
        literal(1, 24, 2),
        literal(2, 26, 9),
        // mrs x8, cntfrq_el0; str x8, [x9, #8]; add x9, x9, #16
        0xd53b_e008,
        0xf900_0528,
        0x9100_4129,
        // wait: ldr x3, [x9]; cbz x3, wait
        0xf940_0123,
        0xb4ff_ffe3,
        // isb; mrs x4, cntvct_el0; mov x5, x1
        0xd503_3fdf,
        0xd53b_e044,
        0xaa01_03e5,
        // touch: str x5, [x5]; add x5, x5, x3; cmp x5, x2; b.lo touch
        0xf900_00a5,
        0x8b03_00a5,
        0xeb02_00bf,
        0x54ff_ffa3,
        // isb; mrs x6, cntvct_el0; sub x6, x6, x4; str x6, [x9, #8]; add x9, x9, #16; b wait
        0xd503_3fdf,
        0xd53b_e046,
        0xcb04_00c6,
        0xf900_0526,
        0x9100_4129,
        0x17ff_fff2,
        // nop
        0xd503_201f,
    ];
    for value in [TOUCHED.start, TOUCHED.end, TABLE].map(address) {
        code.extend([value as u32, (value >> 32) as u32]);
    }
    code
}

/// ldr xR, the literal at this word, as the word `at`.
fn literal(at: u32, word: u32, register: u32) -> u32 {
    0x5800_0000 | (word - at) << 5 | register
}

/// A guest that touches memory by orders.
pub struct Toucher {
    guest: Guest,
    memory: File,
    /// Where its memory begins in the VMM's.
    base: u64,
    /// Of the counter, in Hz.
    frequency: u64,
    next: u64,
    _scratch: Scratch,
}

impl Toucher {
    /// Starts one with these options, beside those for its kernel, memory and MTE.
    ///
    /// # Panics
    /// When it does not start, or the test is not root.
    pub fn start(options: &[(&str, &str)]) -> Self {
        let scratch = Scratch::new();
        let kernel = scratch.join("toucher");
        std::fs::write(&kernel, bare::image(&code())).unwrap();
        let plan = Plan::bare(&kernel).with("--memory", "256M").with("--mte", "require");
        let plan = options.iter().fold(plan, |plan, (name, value)| plan.with(name, value));
        let guest = plan.start();
        guest.answers();
        // Its pieces follow one another. No other memory with tags is so large.
        let pieces = tagged_ram(guest.pid());
        let is_end = |end: u64| pieces.iter().any(|piece| piece.addresses.end == end);
        let starts = pieces.iter().map(|piece| piece.addresses.start);
        let base = starts.into_iter().find(|start| is_end(start + MEMORY)).unwrap();
        let path = format!("/proc/{}/mem", guest.pid());
        let memory = OpenOptions::new().read(true).write(true).open(path).unwrap();
        let mut toucher = Self { guest, memory, base, frequency: 0, next: 0, _scratch: scratch };
        toucher.frequency = toucher.answer();
        toucher
    }

    /// The VMM's process.
    pub fn pid(&self) -> u32 {
        self.guest.pid()
    }

    /// Has it touch a word every so many bytes. How many instructions that took.
    ///
    /// # Panics
    /// When it does not answer.
    pub fn touch(&mut self, stride: u64) -> f64 {
        let order = self.base + TABLE + self.next * ENTRY;
        self.memory.write_all_at(&stride.to_le_bytes(), order).unwrap();
        // A host that counts instructions has one processor, and a nanosecond for each.
        self.answer() as f64 * 1e9 / self.frequency as f64
    }

    /// The answer to the order that is next.
    fn answer(&mut self) -> u64 {
        let at = self.base + TABLE + self.next * ENTRY + ANSWER;
        self.next += 1;
        until("the guest's touches", || {
            let mut bytes = [0; 8];
            self.memory.read_exact_at(&mut bytes, at).unwrap();
            Some(u64::from_le_bytes(bytes)).filter(|answer| *answer != 0)
        })
    }

    /// Ends it.
    ///
    /// # Panics
    /// When it does not end.
    pub fn stop(self) {
        self.guest.stop();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn branches_and_literals_are_where_the_code_says() {
        let code = code();
        let offset19 = |word: u32| ((word << 8) as i32) >> 13;
        assert_eq!(offset19(code[7]), -1);
        assert_eq!(offset19(code[14]), -3);
        assert_eq!(((code[20] << 6) as i32) >> 6, 6 - 20);
        for (at, value) in [(0, TOUCHED.start), (1, TOUCHED.end), (2, TABLE)] {
            let literal = at + offset19(code[at]) as usize;
            assert!(literal.is_multiple_of(2), "a doubleword that is not aligned");
            let found = u64::from(code[literal]) | u64::from(code[literal + 1]) << 32;
            assert_eq!(found, RAM_BASE.raw_value() + value);
        }
    }
}
