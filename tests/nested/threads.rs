//! The signals that end a program belong to its main thread, whatever else runs.

use std::fs;

use rustix::process::Signal;
use testing::broker::Broker;
use testing::guest::{Guest, Plan};
use testing::lab::Lab;
use testing::wait::until;

/// SIGHUP, SIGINT, SIGQUIT and SIGTERM, as a mask of /proc/PID/task/*/status.
const ENDING: u64 = 1 << 0 | 1 << 1 | 1 << 2 | 1 << 14;

/// The name and the blocked signals of each thread of a process.
fn threads(pid: u32) -> Vec<(String, u64)> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    tasks
        .filter_map(|task| fs::read_to_string(task.ok()?.path().join("status")).ok())
        .map(|status| {
            let field = |name: &str| {
                let line = status.lines().find_map(|line| line.strip_prefix(name));
                line.unwrap().trim().to_owned()
            };
            (field("Name:"), u64::from_str_radix(&field("SigBlk:"), 16).unwrap())
        })
        .collect()
}

/// Checks every thread of a process in which those of these names run at least.
fn none_takes_an_ending_signal(what: &str, pid: u32, names: &[&str]) {
    let threads = until(what, || {
        let threads = threads(pid);
        let runs = |name: &&str| threads.iter().any(|(known, _)| known == name);
        names.iter().all(runs).then_some(threads)
    });
    for (name, blocked) in &threads {
        assert_eq!(blocked & ENDING, ENDING, "{what}: {name} of {threads:x?}");
    }
}

fn idle(flags: &[(&str, &str)]) -> Guest {
    let plan = Plan::workload("idle").with("--mte", "require").with("--memory", "256M");
    let plan = flags.iter().fold(plan, |plan, (flag, value)| plan.with(flag, value));
    let mut guest = plan.start();
    guest.report("ready");
    guest
}

#[test]
fn no_thread_takes_the_signals_that_end_a_program() {
    Lab::new().run(|| {
        let broker = Broker::start(&["--capacity", "64M"]);
        let demand = [("--tag-storage", "demand")];
        let broker_demand = [demand[0], ("--broker", broker.socket())];
        let broker_strict = [("--tag-storage", "strict"), ("--broker", broker.socket())];
        for (what, flags, names) in [
            ("no tag storage", &[][..], &["vcpu0"][..]),
            ("strict", &[("--tag-storage", "strict")], &["vcpu0"]),
            ("demand", &demand, &["vcpu0", "faults"]),
            ("strict, broker", &broker_strict, &["vcpu0"]),
            ("demand, broker", &broker_demand, &["vcpu0", "faults"]),
        ] {
            let guest = idle(flags);
            none_takes_an_ending_signal(what, guest.pid(), names);
            if what.contains("broker") {
                none_takes_an_ending_signal("the broker", broker.pid(), &["client"]);
            }
            guest.signal(Signal::TERM);
            assert_eq!(guest.finish().code, Some(143), "{what}");
        }
        // The thread that looks for another broker is started by whichever thread misses the first.
        let guest = idle(&broker_demand);
        broker.kill();
        none_takes_an_ending_signal("no broker", guest.pid(), &["broker"]);
        guest.signal(Signal::TERM);
        assert_eq!(guest.finish().code, Some(143), "no broker");
    });
}
