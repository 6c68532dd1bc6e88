//! The filters of system calls, as programs: each allows what its table does, whatever the call and its arguments.
#![allow(clippy::unwrap_used)]

#[path = "../seccomp/bpf.rs"]
mod bpf;
#[path = "../seccomp/table.rs"]
mod table;

use std::collections::{BTreeMap, BTreeSet};

use bpf::{AARCH64, ALLOW, TRAP, compile};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch,
};
use table::{Alternative, Calls, Condition, Table, numbers};

const NUMBERS: &str = include_str!("../../resources/seccomp/aarch64.calls");
const FILTERS: &str = include_str!("../../resources/seccomp/aarch64.filters");

/// More than the kernel has; it looks at this many when a filter is installed.
const MOST_CALLS: u32 = 512;

/// A call: number and arguments.
#[derive(Clone, Copy, Debug)]
struct Call(u32, [u64; 6]);

/// Runs a program: what it returns, and how many instructions that took.
fn run(program: &[u64], architecture: u32, Call(number, arguments): Call) -> (u32, usize) {
    let word = |offset: u32| match offset {
        0 => number,
        4 => architecture,
        16.. if offset % 8 == 4 => (arguments[(offset as usize - 16) / 8] >> 32) as u32,
        16.. => arguments[(offset as usize - 16) / 8] as u32,
        _ => panic!("a load at {offset}"),
    };
    let (mut accumulator, mut at, mut steps) = (0, 0, 0);
    loop {
        let instruction = program[at];
        let (code, k) = (instruction as u16, (instruction >> 32) as u32);
        let jump = |holds: bool| match holds {
            true => (instruction >> 16) as u8 as usize,
            false => (instruction >> 24) as u8 as usize,
        };
        (at, steps) = (at + 1, steps + 1);
        match code {
            0x20 => accumulator = word(k),
            0x54 => accumulator &= k,
            0x05 => at += k as usize,
            0x15 => at += jump(accumulator == k),
            0x25 => at += jump(accumulator > k),
            0x35 => at += jump(accumulator >= k),
            0x06 => return (k, steps),
            _ => panic!("the code {code:#x}"),
        }
    }
}

fn holds(condition: &Condition, Call(_, arguments): Call) -> bool {
    arguments[usize::from(condition.argument)] as u32 & condition.mask == condition.value
}

/// What the table says of a call.
fn wanted(calls: &Calls, call: Call) -> u32 {
    let allowed = calls.get(&call.0).is_some_and(|alternatives| {
        let holds = |all: &Alternative| all.iter().all(|condition| holds(condition, call));
        alternatives.is_empty() || alternatives.iter().any(holds)
    });
    if allowed { ALLOW } else { TRAP }
}

/// Every call, with arguments around all values that the filter compares.
fn interesting(calls: &Calls) -> Vec<Call> {
    let mut found: Vec<_> = (0..MOST_CALLS).map(|number| Call(number, [0; 6])).collect();
    found.extend([u32::MAX, 1 << 31, 1 << 16].map(|number| Call(number, [0; 6])));
    for (number, alternatives) in calls {
        for condition in alternatives.iter().flatten() {
            let bits = (0..32).map(|bit| condition.value ^ 1 << bit);
            for value in bits.chain([condition.value, 0, u32::MAX]) {
                // The upper half is no part of an `int`.
                for upper in [0, u64::MAX << 32] {
                    let mut arguments = [0; 6];
                    arguments[usize::from(condition.argument)] = u64::from(value) | upper;
                    found.push(Call(*number, arguments));
                }
            }
        }
    }
    found
}

fn tables() -> BTreeMap<String, Calls> {
    Table::parse(FILTERS, &numbers(NUMBERS).unwrap()).unwrap().filters
}

#[test]
fn each_filter_allows_what_its_table_does_and_nothing_else() {
    let tables = tables();
    assert!(tables.len() > 10);
    for (name, calls) in &tables {
        let program = compile(calls).unwrap();
        for call in interesting(calls) {
            let (found, _) = run(&program, AARCH64, call);
            assert_eq!(found, wanted(calls, call), "{name}: {call:?}");
            let (elsewhere, _) = run(&program, 0xc000_003e, call);
            assert_eq!(elsewhere, TRAP, "{name}: {call:?} of x86_64");
        }
    }
}

/// A call that an alternative allows, with these bits where it does not look.
fn allowed_by(number: u32, all: &Alternative, rest: u32) -> Call {
    let mut arguments = [u64::from(rest); 6];
    for Condition { argument, mask, value } in all {
        let argument = &mut arguments[usize::from(*argument)];
        *argument = *argument & !u64::from(*mask) | u64::from(*value);
    }
    Call(number, arguments)
}

/// Without any of its rules a filter refuses a call that it allows.
#[test]
fn no_rule_is_redundant() {
    for (name, calls) in tables() {
        for (number, alternatives) in &calls {
            for all in alternatives {
                let holds = |all: &Alternative, call| all.iter().all(|it| holds(it, call));
                let is_needed = [0, u32::MAX, 0x5555_5555, 0xaaaa_aaaa].iter().any(|rest| {
                    let call = allowed_by(*number, all, *rest);
                    let others = alternatives.iter().filter(|other| *other != all);
                    holds(all, call) && !others.into_iter().any(|other| holds(other, call))
                });
                let same = alternatives.iter().filter(|other| *other == all).count();
                assert!(is_needed && same == 1, "{name}: {number}: {all:?}");
            }
        }
    }
}

/// The same filter by the crate of rust-vmm.
fn by_seccompiler(calls: &Calls) -> Vec<u64> {
    let condition = |condition: &Condition| {
        let compare = match condition.mask {
            u32::MAX => SeccompCmpOp::Eq,
            mask => SeccompCmpOp::MaskedEq(mask.into()),
        };
        let (length, value) = (SeccompCmpArgLen::Dword, condition.value.into());
        SeccompCondition::new(condition.argument, length, compare, value).unwrap()
    };
    let rule = |all: &Alternative| SeccompRule::new(all.iter().map(condition).collect()).unwrap();
    let rules = calls
        .iter()
        .map(|(number, alternatives)| ((*number).into(), alternatives.iter().map(rule).collect()));
    let (otherwise, then) = (SeccompAction::Trap, SeccompAction::Allow);
    let filter = SeccompFilter::new(rules.collect(), otherwise, then, TargetArch::aarch64).unwrap();
    let program = BpfProgram::try_from(filter).unwrap();
    program
        .iter()
        .map(|it| {
            let jumps = u64::from(it.jt) << 16 | u64::from(it.jf) << 24;
            u64::from(it.code) | jumps | u64::from(it.k) << 32
        })
        .collect()
}

/// A second opinion, and the reason for a compiler of our own: what the kernel does for a new filter.
#[test]
fn seccompiler_means_the_same_and_takes_longer() {
    for (name, calls) in tables() {
        let (own, other) = (compile(&calls).unwrap(), by_seccompiler(&calls));
        for call in interesting(&calls) {
            let found = [&own, &other].map(|program| run(program, AARCH64, call).0);
            assert_eq!(found[0], found[1], "{name}: {call:?}");
        }
        let cost = [&own, &other].map(|program| -> usize {
            (0..MOST_CALLS).map(|number| run(program, AARCH64, Call(number, [0; 6])).1).sum()
        });
        println!(
            "{name}: {} calls, {} instructions (seccompiler {}); {} run to install it (seccompiler {})",
            calls.len(),
            own.len(),
            other.len(),
            cost[0],
            cost[1],
        );
        assert!(cost[0] * 4 < cost[1], "{name}: {cost:?}");
    }
}

#[test]
fn the_programs_are_those_of_the_tables() {
    for (name, calls) in tables() {
        assert_eq!(vmm::sandbox::program(&name).unwrap(), compile(&calls).unwrap(), "{name}");
    }
}

/// No thread executes what it has written, starts another program, becomes another user, or traces others.
#[test]
fn no_filter_allows_what_a_vm_has_no_use_for() {
    let numbers = numbers(NUMBERS).unwrap();
    const NEVER: [&str; 24] = [
        "execve",
        "execveat",
        "ptrace",
        "process_vm_readv",
        "process_vm_writev",
        "bpf",
        "mount",
        "umount2",
        "pivot_root",
        "chroot",
        "setns",
        "unshare",
        "init_module",
        "finit_module",
        "kexec_load",
        "setuid",
        "setgid",
        "setresuid",
        "capset",
        "keyctl",
        "perf_event_open",
        "io_uring_setup",
        "clone3",
        "open_by_handle_at",
    ];
    for (name, calls) in tables() {
        for never in NEVER {
            assert!(!calls.contains_key(&numbers[never]), "{name} allows {never}");
        }
        for (call, argument, bit) in [("mmap", 2, 4), ("mprotect", 2, 4)] {
            let Some(alternatives) = calls.get(&numbers[call]) else { continue };
            let forbids =
                |all: &Alternative| all.contains(&Condition { argument, mask: bit, value: 0 });
            assert!(!alternatives.is_empty() && alternatives.iter().all(forbids), "{name}: {call}");
        }
        // Threads, no processes; sockets of files, no networks.
        for (call, value) in [("clone", 0x7d_0f00), ("socket", 1)] {
            let Some(alternatives) = calls.get(&numbers[call]) else { continue };
            let only = BTreeSet::from([vec![Condition { argument: 0, mask: u32::MAX, value }]]);
            assert_eq!(*alternatives, only, "{name}: {call}");
        }
    }
}

fn refused(lines: &str) -> String {
    let text = format!("const TWO 2\n{lines}");
    Table::parse(&text, &numbers(NUMBERS).unwrap()).unwrap_err()
}

#[test]
fn a_table_that_says_what_it_cannot_mean_is_refused() {
    for (lines, why) in [
        ("filter a\n nothing", "no system call nothing"),
        ("filter a\n read arg0", "no condition"),
        ("filter a\n read arg6 == 1", "no argument"),
        ("filter a\n read arg0 == THREE", "no value: THREE"),
        ("filter a\n use b", "no group b"),
        ("group b\n read", "no filter uses the group b"),
        ("read", "before the first section"),
        ("filter a\nfilter a", "a twice"),
        ("const TWO 3", "TWO twice"),
        // A rule that another makes needless.
        ("filter a\n read\n read", "is needless"),
        ("filter a\n read arg0 == TWO\n read", "is needless"),
        ("filter a\n read\n read arg0 == TWO", "is needless"),
        ("filter a\n read arg0 == 2\n read arg0 == TWO", "is needless"),
        ("group b\n read\nfilter a\n use b\n read", "is needless"),
    ] {
        let found = refused(lines);
        assert!(found.contains(why), "{lines}: {found}");
    }
}

/// Reads what the nested tests have recorded (tests/src/calls.rs): a line is `CALL FILTER CALL VALUE`, where the call is
/// `-` and the value its number, or the value is that of the argument that tables look at.
#[test]
#[ignore = "make calls"]
fn rules_that_no_nested_test_has_used() {
    let record = std::env::var_os("TESSERA_CALLS").expect("TESSERA_CALLS names the record");
    let (numbers, mut used) = (numbers(NUMBERS).unwrap(), BTreeSet::new());
    for line in std::fs::read_to_string(record).unwrap().lines() {
        let Some((_, line)) = line.split_once("CALL ") else { continue };
        let [filter, call, value] = line.split_whitespace().collect::<Vec<_>>()[..] else {
            continue;
        };
        if let Ok(value) = value.parse::<u64>() {
            used.insert((filter.to_owned(), numbers.get(call).copied(), value as u32));
        }
    }
    assert!(!used.is_empty(), "no line begins with CALL");
    let names: BTreeMap<u32, &str> = numbers.iter().map(|(name, at)| (*at, *name)).collect();
    for (filter, calls) in &tables() {
        for (call, alternatives) in calls {
            let name = names[call];
            if !used.contains(&(filter.clone(), None, *call)) {
                println!("{filter}: {name}");
                continue;
            }
            // Of other calls arguments are not recorded.
            if !["ioctl", "madvise", "fcntl", "prctl"].contains(&name) {
                continue;
            }
            for condition in alternatives.iter().flatten() {
                if !used.contains(&(filter.clone(), Some(*call), condition.value)) {
                    let Condition { argument, value, .. } = condition;
                    println!("{filter}: {name} arg{argument} == {value:#x}");
                }
            }
        }
    }
}
