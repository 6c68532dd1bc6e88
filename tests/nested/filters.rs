//! The filters of system calls, in the kernel: each call outside a table and each changed argument ends the process, and
//! is named.

#[path = "../../vmm/seccomp/table.rs"]
mod table;

use std::collections::{BTreeMap, BTreeSet};

use table::{Alternative, Calls, Table, numbers};
use testing::forked::call_in_a_copy;
use testing::lab::Lab;
use vmm::sandbox::{self, ROLES, Role, SandboxArgs, SandboxMode, SeccompMode};

const NUMBERS: &str = include_str!("../../resources/seccomp/aarch64.calls");
const FILTERS: &str = include_str!("../../resources/seccomp/aarch64.filters");

/// A call: number and arguments.
type Call = (u32, [u64; 6]);

/// The filter of a thread, which is also what the thread is called here.
fn filter_of(role: Role) -> &'static str {
    match role {
        Role::Main => "main",
        Role::Vcpu => "vcpu",
        Role::Faults => "faults",
        Role::Loader => "loader",
        Role::Disk => "disk",
        Role::Net => "net",
        Role::Vsock => "vsock",
        Role::BrokerClient => "broker_client",
        Role::Footprint => "footprint",
        Role::Broker => "broker_main",
        Role::BrokerSession => "broker_session",
        Role::Template => "template",
    }
}

fn is_allowed(alternatives: &BTreeSet<Alternative>, arguments: &[u64; 6]) -> bool {
    alternatives.iter().any(|all| {
        all.iter().all(|condition| {
            let argument = arguments[usize::from(condition.argument)] as u32;
            argument & condition.mask == condition.value
        })
    })
}

/// Each call that a table does not have, as the kernel refuses it in any case.
fn outside(calls: &Calls, numbers: &BTreeMap<&str, u32>) -> Vec<Call> {
    let absent = numbers.values().filter(|number| !calls.contains_key(number));
    absent.map(|number| (*number, [u64::MAX; 6])).collect()
}

/// For each condition of a table a call that it alone refuses.
fn changed(calls: &Calls) -> Vec<Call> {
    let mut found = Vec::new();
    for (number, alternatives) in calls {
        for all in alternatives {
            let mut arguments = [0; 6];
            for condition in all {
                arguments[usize::from(condition.argument)] = u64::from(condition.value);
            }
            assert!(is_allowed(alternatives, &arguments), "{number}: {all:?}");
            for condition in all {
                let bits = (0..32).filter(|bit| condition.mask & 1 << bit != 0);
                let other = bits
                    .map(|bit| {
                        let mut other = arguments;
                        other[usize::from(condition.argument)] ^= 1 << bit;
                        other
                    })
                    .find(|other| !is_allowed(alternatives, other));
                found.push((*number, other.unwrap_or_else(|| panic!("{number}: {condition:?}"))));
            }
        }
    }
    found
}

/// Makes the call under the filter of a thread, which is to refuse it.
fn is_refused(role: Role, name: &str, (number, arguments): Call) {
    let filter = filter_of(role);
    let prepare = || {
        let args = SandboxArgs { seccomp: SeccompMode::On, sandbox: SandboxMode::Off };
        let name = std::ffi::CString::new(filter).unwrap();
        rustix::thread::set_name(&name).unwrap();
        sandbox::begin(&args, sandbox::Files::default()).unwrap();
        sandbox::confine(role).unwrap();
    };

    let (code, said) = call_in_a_copy(prepare, number, arguments).unwrap();

    let expected = format!("thread {filter} made the system call {name} ({number})");
    assert_eq!(code, Some(16), "{filter}, {name} with {arguments:x?}: {said}");
    assert!(said.contains(&expected), "{filter}, {name}: {said}");
}

#[test]
#[ignore = "long"]
fn each_call_outside_a_table_and_each_changed_argument_ends_the_process() {
    Lab::new().run(|| {
        vmm::sys::fatal::install();
        let numbers = numbers(NUMBERS).unwrap();
        let names: BTreeMap<u32, &str> = numbers.iter().map(|(name, at)| (*at, *name)).collect();
        let tables = Table::parse(FILTERS, &numbers).unwrap().filters;
        assert_eq!(tables.len(), ROLES.len());
        for role in ROLES {
            let calls = &tables[filter_of(role)];
            let (outside, changed) = (outside(calls, &numbers), changed(calls));
            println!(
                "{}: {} calls allowed; {} calls and {} changed arguments refused",
                filter_of(role),
                calls.len(),
                outside.len(),
                changed.len()
            );
            for call in outside.into_iter().chain(changed) {
                is_refused(role, names[&call.0], call);
            }
        }
    });
}
