//! A guest kernel that does whatever it likes to the machine: a table of accesses and hypercalls, and a player.

use arch::layout;
use vm_memory::Address;

use crate::bare;
use crate::dice::Dice;

/// Where the table is in the image: behind the player and its vectors, which are at 0x800.
const TABLE: usize = 0x1000;
const VECTORS: usize = 0x800;
/// Guest memory that queues are put in: above the image.
const POOL: u64 = layout::RAM_BASE.0 + (40 << 20);
const POOL_SIZE: u64 = 16 << 20;

/// What the player does with an entry: the number of its handler.
#[derive(Clone, Copy)]
enum Kind {
    Write32,
    Write16,
    Write8,
    Write64,
    Read32,
    Read64,
    Call,
}

const KINDS: [Kind; 6] =
    [Kind::Write32, Kind::Write16, Kind::Write8, Kind::Write64, Kind::Read32, Kind::Read64];

/// Entries of a table.
struct Table(Vec<[u64; 4]>);

impl Table {
    fn push(&mut self, kind: Kind, address: u64, value: u64) {
        self.0.push([kind as u64, address, value, 0]);
    }

    fn register(&mut self, device: u64, offset: u64, value: u64) {
        self.push(Kind::Write32, device + offset, value);
    }
}

/// The image of a kernel that plays a table of about so many entries, over and over. It ends by no wish of its own.
pub fn kernel(dice: &mut Dice, entries: usize, devices: u32) -> Vec<u8> {
    let mut table = Table(Vec::new());
    while table.0.len() < entries {
        match dice.below(8) {
            0..=3 => device(&mut table, dice, devices),
            4 => hypercalls(&mut table, dice),
            _ => (0..32).for_each(|_| poke(&mut table, dice, devices)),
        }
    }
    image(&table)
}

/// Brings a virtio device up as a driver would, more or less, and has it serve queues of rubbish (virtio 1.2, 4.2.2).
fn device(table: &mut Table, dice: &mut Dice, devices: u32) {
    let Some((range, _)) = layout::virtio(dice.roll() as u32 % devices) else { return };
    let base = range.base.raw_value();
    let random = |dice: &mut Dice| match dice.below(4) {
        0 => dice.roll(),
        1 => u64::MAX,
        _ => 0,
    };
    for status in [0, 1, 3] {
        table.register(base, 0x70, status);
    }
    for half in [0, 1] {
        table.register(base, 0x24, half);
        // VERSION_1 in the upper half, without which no driver continues.
        let wanted = if dice.below(2) == 0 { u64::MAX } else { random(dice) | half };
        table.register(base, 0x20, wanted);
    }
    table.register(base, 0x70, 11);
    for queue in 0..4 {
        table.register(base, 0x30, queue);
        let size = 1 << dice.below(9);
        table.register(base, 0x38, if dice.below(8) == 0 { random(dice) } else { size });
        let place = POOL + dice.below((POOL_SIZE >> 12) as usize - 16) as u64 * 4096;
        for (register, part) in [(0x80, 0), (0x90, 0x4000), (0xa0, 0x8000)] {
            let odd = if dice.below(16) == 0 { dice.roll() } else { 0 };
            table.register(base, register, (place + part) ^ (odd & 0xffff_ffff));
            table.register(base, register + 4, odd >> 32);
        }
        rubbish(table, dice, place, size);
        table.register(base, 0x44, 1);
    }
    table.register(base, 0x70, 15);
    for _ in 0..8 {
        table.register(base, 0x50, dice.roll() % 5);
        table.push(Kind::Read32, base + 0x60, 0);
        table.register(base, 0x64, 3);
        configuration(table, dice, base);
    }
}

fn configuration(table: &mut Table, dice: &mut Dice, base: u64) {
    let kind = KINDS[dice.below(KINDS.len())];
    table.push(kind, base + 0x100 + dice.roll() % 0x100, dice.roll());
}

/// Fills a queue with descriptors that are right, wrong and in circles.
fn rubbish(table: &mut Table, dice: &mut Dice, place: u64, size: u64) {
    for at in 0..size.min(24) {
        let address = match dice.below(8) {
            0 => dice.roll(),
            1 => layout::VIRTIO.base.raw_value() + dice.roll() % 0x1_0000,
            2 => layout::RAM_BASE.raw_value() + (64 << 20) - dice.roll() % 64,
            _ => POOL + dice.roll() % POOL_SIZE,
        };
        let length = match dice.below(4) {
            0 => dice.roll() & 0xffff_ffff,
            _ => dice.roll() % 8192,
        };
        let flags = dice.roll() % if dice.below(4) == 0 { 8 } else { 4 };
        let next = dice.roll() % (size + 2);
        table.push(Kind::Write64, place + at * 16, address);
        table.push(Kind::Write64, place + at * 16 + 8, length | flags << 32 | next << 48);
    }
    let index = if dice.below(8) == 0 { dice.roll() & 0xffff } else { 1 + dice.roll() % size };
    for at in 0..size.min(8) {
        table.push(Kind::Write16, place + 0x4004 + at * 2, dice.roll() % (size + 1));
    }
    table.push(Kind::Write32, place + 0x4000, index << 16);
}

/// One access, anywhere below guest memory.
fn poke(table: &mut Table, dice: &mut Dice, devices: u32) {
    let virtio = layout::VIRTIO.base.raw_value();
    let address = match dice.below(8) {
        0..=2 => (virtio + dice.roll() % (u64::from(devices + 1) << 16)) & !0xfe00,
        3 => layout::SERIAL.base.raw_value() + dice.roll() % 0x4000,
        4 => layout::GIC_DISTRIBUTOR.base.raw_value() + dice.roll() % 0x1_2000,
        5 => layout::GIC_REDISTRIBUTORS.base.raw_value() + dice.roll() % 0x6_0000,
        6 => layout::GENERATION.base.raw_value() + dice.roll() % 0x2_0000,
        _ => dice.roll() % layout::RAM_BASE.raw_value(),
    };
    let value = match dice.below(3) {
        0 => dice.roll() % 128,
        1 => POOL + dice.roll() % POOL_SIZE,
        _ => dice.roll(),
    };
    table.push(KINDS[dice.below(KINDS.len())], address, value);
}

/// Hypercalls but those that end the VM, or a processor for good: PSCI's CPU_SUSPEND, CPU_OFF, SYSTEM_OFF, SYSTEM_RESET,
/// SYSTEM_SUSPEND and SYSTEM_RESET2 (DEN0022).
fn hypercalls(table: &mut Table, dice: &mut Dice) {
    for _ in 0..16 {
        let function = match dice.below(4) {
            0 => dice.roll() & 0xffff_ffff,
            1 => 0x8600_0000 | (dice.roll() % 0x100),
            _ => 0x8400_0000 | (dice.roll() & 0x4000_0000) | (dice.roll() % 0x24),
        };
        let is_psci = (function & 0xbfff_ffe0) == 0x8400_0000;
        if is_psci && matches!(function & 0x1f, 1 | 2 | 8 | 9 | 14 | 18) {
            continue;
        }
        table.push(Kind::Call, function, dice.roll());
    }
}

/// The player: see the Arm ARM for the encodings.
fn player() -> Vec<u32> {
    let mut code = vec![
        0x1000_3e01, // adr x1, vectors
        0xd518_c001, // msr vbar_el1, x1
        0xd503_3fdf, // isb
        0x1000_7db6, // adr x22, table
        0xf940_02d7, // ldr x23, [x22]: its length in bytes
        0x9100_42d6, // add x22, x22, #16
        0xaa16_03f4, // again: mov x20, x22
        0x8b17_02d5, // add x21, x22, x23
        0xa8c1_1684, // next: ldp x4, x5, [x20], #16
        0xa8c1_1e86, // ldp x6, x7, [x20], #16
        0x1000_00c8, // adr x8, handlers
        0x8b04_1108, // add x8, x8, x4, lsl #4
        0xd61f_0100, // br x8
        0xeb15_029f, // done: cmp x20, x21
        0x54ff_ff43, // b.lo next
        0x17ff_fff7, // b again
    ];
    // An entry of the handlers has four instructions.
    let done = |from: usize| 0x1400_0000 | ((13_i32 - from as i32) & 0x3ff_ffff) as u32;
    // str w6, strh, strb, str x6, ldr w6, ldr x6, each at [x5].
    for access in [0xb900_00a6, 0x7900_00a6, 0x3900_00a6, 0xf900_00a6, 0xb940_00a6, 0xf940_00a6] {
        let at = code.len();
        code.extend([access, done(at + 1), 0, 0]);
    }
    let at = code.len();
    // mov x0, x5; mov x1, x6; hvc #0.
    code.extend([0xaa05_03e0, 0xaa06_03e1, 0xd400_0002, done(at + 3)]);
    code
}

fn image(table: &Table) -> Vec<u8> {
    let word = |offset: usize| (offset - bare::CODE) / 4;
    let mut code = player();
    code.resize(word(VECTORS), 0);
    for vector in 0..16 {
        code.resize(word(VECTORS + vector * 0x80), 0);
        // mrs x9, elr_el1; add x9, x9, #4; msr elr_el1, x9; eret: an access that ends in an abort is left out.
        code.extend([0xd538_4029, 0x9100_1129, 0xd518_4029, 0xd69f_03e0]);
    }
    code.resize(word(TABLE), 0);
    let head = [table.0.len() as u64 * 32, 0];
    let words = head.iter().chain(table.0.iter().flatten());
    code.extend(words.flat_map(|word| [*word as u32, (*word >> 32) as u32]));
    bare::image(&code)
}
