//! Filters as programs of classic BPF, for `SECCOMP_SET_MODE_FILTER`.
//!
//! The kernel runs a new filter once for every number of a system call, to know which are always allowed
//! (`seccomp_cache_prepare` in kernel/seccomp.c), and translates it instruction by instruction, and a VM has a filter a
//! thread. So a number is found by halving and not call by call: a start of a VM has to run ten to twenty times fewer of these
//! instructions. And all that ends alike ends in one place, which halves the program.
//!
//! # References
//! seccomp(2); Linux include/uapi/linux/{bpf_common,filter,seccomp,audit}.h

use std::collections::{BTreeMap, BTreeSet};

use super::table::{Alternative, Calls, Condition};

/// One instruction: code in bits 0 to 15, jumps in bits 16 to 31, the constant above, as `struct sock_filter` lies in
/// little-endian memory.
pub(crate) type Instruction = u64;

/// What a program returns for what it does not allow, until it is loaded: `SECCOMP_RET_TRAP`.
pub(crate) const TRAP: u32 = 0x0003_0000;
/// `SECCOMP_RET_ALLOW`.
pub(crate) const ALLOW: u32 = 0x7fff_0000;
/// `AUDIT_ARCH_AARCH64`.
pub(crate) const AARCH64: u32 = 0xc000_00b7;

/// The most instructions of a program (`BPF_MAXINSNS`).
const MOST: usize = 4096;

/// How many numbers the kernel looks at, or a few more: it knows of 470 calls, and adds two or three a year.
const NUMBERS: u32 = 480;

/// How many instructions a conditional jump skips at most, but for those that may come between before it is made.
const NEAR: usize = u8::MAX as usize - 4;

// Codes of instructions.
const LOAD: u16 = 0x20;
const AND: u16 = 0x54;
const JUMP: u16 = 0x05;
const JUMP_EQUAL: u16 = 0x15;
const JUMP_NOT_LESS: u16 = 0x35;
const RETURN: u16 = 0x06;

// Offsets in `struct seccomp_data`.
const NUMBER: u32 = 0;
const ARCHITECTURE: u32 = 4;
const ARGUMENTS: u32 = 16;

fn instruction(code: u16, jt: u8, jf: u8, k: u32) -> Instruction {
    u64::from(code) | u64::from(jt) << 16 | u64::from(jf) << 24 | u64::from(k) << 32
}

fn returns(action: u32) -> Instruction {
    instruction(RETURN, 0, 0, action)
}

/// What becomes of a number.
#[derive(Clone, Copy)]
enum Fate<'a> {
    Trapped,
    Allowed,
    /// Allowed if one of these holds.
    Checked(&'a BTreeSet<Alternative>),
}

/// Where a jump goes.
#[derive(Clone, Copy)]
enum Target {
    Trap,
    Allow,
    /// To this instruction, counted from the end.
    At(usize),
}

/// A program that is written from its end on: jumps go forwards alone, so that what they go to is there before them.
struct Program {
    /// In reverse.
    code: Vec<Instruction>,
    /// Where the nearest returns are.
    trap: usize,
    allow: usize,
}

/// The program of a filter for arm64.
pub(crate) fn compile(calls: &Calls) -> Result<Vec<Instruction>, String> {
    let mut program = Program { code: vec![returns(TRAP), returns(ALLOW)], trap: 0, allow: 1 };
    let found = program.search(&ranges(calls), NUMBERS)?;
    program.fall_to(found);
    let number = program.load(NUMBER);
    program.branch(JUMP_EQUAL, AARCH64, number, Target::Trap)?;
    program.load(ARCHITECTURE);
    let mut code = program.code;
    code.reverse();
    match code.len() {
        0..=MOST => Ok(code),
        length => Err(format!("{length} instructions are too many")),
    }
}

/// Ranges of numbers, each by its first, that together are all numbers.
fn ranges(calls: &Calls) -> Vec<(u32, Fate<'_>)> {
    let mut ranges = vec![(0, Fate::Trapped)];
    for (number, alternatives) in calls {
        let fate = match alternatives.is_empty() {
            true => Fate::Allowed,
            false => Fate::Checked(alternatives),
        };
        // The call before ends here.
        ranges.pop_if(|(start, _)| *start == *number);
        // Calls in a row whose arguments do not matter are one range.
        let goes_on = matches!((ranges.last(), fate), (Some((_, Fate::Allowed)), Fate::Allowed));
        if !goes_on {
            ranges.push((*number, fate));
        }
        ranges.push((number + 1, Fate::Trapped));
    }
    ranges
}

/// Where to halve ranges that end before a number: as many numbers are below as from there on, as far as that can be.
fn middle(ranges: &[(u32, Fate<'_>)], end: u32) -> usize {
    let start = |at: usize| ranges.get(at).map_or(end, |(start, _)| *start);
    let sum = u64::from(start(0)) + u64::from(end);
    (1..ranges.len()).min_by_key(|at| (2 * u64::from(start(*at))).abs_diff(sum)).unwrap_or(1)
}

impl Program {
    fn push(&mut self, instruction: Instruction) -> Target {
        self.code.push(instruction);
        Target::At(self.code.len() - 1)
    }

    /// What comes next is done with this word of the call.
    fn load(&mut self, offset: u32) -> Target {
        self.push(instruction(LOAD, 0, 0, offset))
    }

    /// How many instructions a jump that comes next skips.
    fn distance(&self, place: usize) -> usize {
        self.code.len() - place - 1
    }

    /// Has what comes next be followed by the target.
    fn fall_to(&mut self, target: Target) {
        let place = match target {
            Target::Trap => self.trap,
            Target::Allow => self.allow,
            Target::At(place) => place,
        };
        let distance = self.distance(place);
        if distance > 0 {
            self.push(instruction(JUMP, 0, 0, distance as u32));
        }
    }

    /// A place that a conditional jump reaches at which the program continues with the target.
    fn near(&mut self, target: Target) -> usize {
        let next = self.code.len();
        match target {
            Target::At(place) if self.distance(place) <= NEAR => place,
            Target::At(_) => {
                self.fall_to(target);
                next
            }
            Target::Trap => {
                if self.distance(self.trap) > NEAR {
                    self.trap = next;
                    self.code.push(returns(TRAP));
                }
                self.trap
            }
            Target::Allow => {
                if self.distance(self.allow) > NEAR {
                    self.allow = next;
                    self.code.push(returns(ALLOW));
                }
                self.allow
            }
        }
    }

    /// Continues here or there, by what is loaded.
    fn branch(
        &mut self,
        code: u16,
        value: u32,
        then: Target,
        otherwise: Target,
    ) -> Result<Target, String> {
        let (then, otherwise) = (self.near(then), self.near(otherwise));
        let distance =
            |place| u8::try_from(self.distance(place)).map_err(|_| "a jump is too far".to_owned());
        let branch = instruction(code, distance(then)?, distance(otherwise)?, value);
        Ok(self.push(branch))
    }

    /// Finds the range of the number that is loaded. The last one is looked at up to a number, which is all that there are.
    fn search(&mut self, ranges: &[(u32, Fate<'_>)], end: u32) -> Result<Target, String> {
        let [_, _, ..] = ranges else {
            return match ranges {
                [(_, Fate::Checked(alternatives))] => self.check(alternatives),
                [(_, Fate::Allowed)] => Ok(Target::Allow),
                _ => Ok(Target::Trap),
            };
        };
        let (low, high) = ranges.split_at(middle(ranges, end));
        let first = high.first().map_or(0, |(start, _)| *start);
        let high = self.search(high, end)?;
        let low = self.search(low, first)?;
        self.branch(JUMP_NOT_LESS, first, high, low)
    }

    /// Tries each alternative: those that compare one argument as it is together, with one load.
    fn check(&mut self, alternatives: &BTreeSet<Alternative>) -> Result<Target, String> {
        let mut plain: BTreeMap<u8, Vec<u32>> = BTreeMap::new();
        let mut next = Target::Trap;
        for alternative in alternatives {
            match &alternative[..] {
                [Condition { argument, mask: u32::MAX, value }] => {
                    plain.entry(*argument).or_default().push(*value);
                }
                conditions => next = self.all_of(conditions, next)?,
            }
        }
        for (argument, values) in plain {
            for value in values {
                next = self.branch(JUMP_EQUAL, value, Target::Allow, next)?;
            }
            next = self.load_argument(argument);
        }
        Ok(next)
    }

    fn all_of(&mut self, conditions: &[Condition], otherwise: Target) -> Result<Target, String> {
        let mut then = Target::Allow;
        for Condition { argument, mask, value } in conditions.iter().rev() {
            self.branch(JUMP_EQUAL, *value, then, otherwise)?;
            if *mask != u32::MAX {
                self.push(instruction(AND, 0, 0, *mask));
            }
            then = self.load_argument(*argument);
        }
        Ok(then)
    }

    fn load_argument(&mut self, argument: u8) -> Target {
        self.load(ARGUMENTS + 8 * u32::from(argument))
    }
}
