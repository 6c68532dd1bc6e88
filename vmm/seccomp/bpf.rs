//! Filters as programs of classic BPF, for `SECCOMP_SET_MODE_FILTER`.
//!
//! The kernel runs a new filter once for every number of a system call, to know which are always allowed
//! (`seccomp_cache_prepare` in kernel/seccomp.c), and a VM has a filter a thread. So a number is found by halving and
//! not call by call: a start of a VM has to run thirty times fewer of these instructions.
//!
//! # References
//! seccomp(2); Linux include/uapi/linux/{bpf_common,filter,seccomp,audit}.h

use std::collections::BTreeSet;

use super::table::{Alternative, Calls};

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

/// The program of a filter for arm64.
pub(crate) fn compile(calls: &Calls) -> Result<Vec<Instruction>, String> {
    let mut program = vec![
        instruction(LOAD, 0, 0, ARCHITECTURE),
        instruction(JUMP_EQUAL, 1, 0, AARCH64),
        returns(TRAP),
        instruction(LOAD, 0, 0, NUMBER),
    ];
    program.extend(search(&ranges(calls))?);
    match program.len() {
        0..=MOST => Ok(program),
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

/// Finds the range of the number that is loaded.
fn search(ranges: &[(u32, Fate<'_>)]) -> Result<Vec<Instruction>, String> {
    let [_, _, ..] = ranges else {
        return match ranges {
            [(_, Fate::Checked(alternatives))] => check(alternatives),
            [(_, Fate::Allowed)] => Ok(vec![returns(ALLOW)]),
            _ => Ok(vec![returns(TRAP)]),
        };
    };
    let (low, high) = ranges.split_at(ranges.len() / 2);
    let first = high.first().map_or(0, |(start, _)| *start);
    let low = search(low)?;
    let mut code = match u8::try_from(low.len()) {
        Ok(length) => vec![instruction(JUMP_NOT_LESS, length, 0, first)],
        Err(_) => {
            vec![instruction(JUMP_NOT_LESS, 0, 1, first), instruction(JUMP, 0, 0, low.len() as u32)]
        }
    };
    code.extend(low);
    code.extend(search(high)?);
    Ok(code)
}

/// Tries each alternative in turn.
fn check(alternatives: &BTreeSet<Alternative>) -> Result<Vec<Instruction>, String> {
    let mut code = Vec::new();
    let mut loaded = None;
    for alternative in alternatives {
        let mut part = Vec::new();
        for condition in alternative {
            // One after the other that looks at the same argument finds it loaded.
            if loaded != Some(condition.argument) {
                let offset = ARGUMENTS + 8 * u32::from(condition.argument);
                part.push(instruction(LOAD, 0, 0, offset));
            }
            loaded = Some(condition.argument);
            if condition.mask != u32::MAX {
                part.push(instruction(AND, 0, 0, condition.mask));
                loaded = None;
            }
            // To the next alternative otherwise; how far that is, is known at its end.
            part.push(instruction(JUMP_EQUAL, 0, 0, condition.value));
        }
        part.push(returns(ALLOW));
        if alternative.len() > 1 {
            // Where a condition has failed is not known.
            loaded = None;
        }
        let length = part.len();
        for (at, word) in part.iter_mut().enumerate() {
            if *word as u16 == JUMP_EQUAL {
                let rest = u8::try_from(length - at - 1).map_err(|_| "too many conditions")?;
                *word |= u64::from(rest) << 24;
            }
        }
        code.extend(part);
    }
    code.push(returns(TRAP));
    Ok(code)
}
