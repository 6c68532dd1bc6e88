//! What a host does to a VM: it has no memory for it, its clock jumps, it does not run it for a while.

use std::process::Command;
use std::time::Duration;

use rustix::process::Signal;
use testing::broker::Broker;
use testing::control_group::ControlGroup;
use testing::guest::Plan;
use testing::lab::{Lab, program};
use testing::scratch::Scratch;
use testing::wait::until;
use vmm::api::model::State;
use vmm::tag_storage::broker::BrokerReport;

fn leases(count: usize) -> impl Fn(&BrokerReport) -> bool {
    move |report| report.pool.leases.len() == count
}

/// A guest of 512 MiB whose tag storage is the broker's.
fn of_the_broker(broker: &Broker, name: &str) -> Plan {
    let plan = Plan::workload("memory").with("--memory", "512M").with("--id", name);
    let plan = plan.with("--mte", "require").with("--tag-storage", "demand");
    plan.with("--broker", broker.socket())
}

/// The VMs that `tesseractl list` names.
fn listed() -> String {
    let output = Command::new(program("tesseractl")).arg("list").output().unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

#[test]
#[ignore = "long"]
fn a_control_group_without_memory_ends_its_vm_and_no_other() {
    Lab::new().as_root().run(|| {
        let broker = Broker::start(&["--capacity", "64M"]);
        let plan = |name| of_the_broker(&broker, name);
        let (mut short, mut neighbour) = (plan("short").start(), plan("neighbour").start());
        short.report("ready");
        neighbour.report("ready");
        let group = ControlGroup::new("short", short.pid());
        group.set("memory.max", "128M");
        if std::fs::exists("/sys/fs/cgroup/short/memory.swap.max").unwrap() {
            group.set("memory.swap.max", "0");
        }
        neighbour.order("press 32", "pressing");

        short.type_line("touch 300");
        let finished = short.finish();

        assert_eq!((finished.code, group.killed()), (None, 1), "{finished:#?}");
        broker.wait("the lease of the other alone", leases(1));
        let names = listed();
        assert!(names.contains("neighbour") && !names.contains("short"), "{names}");
        let relaxed = neighbour.order("relax", "relaxed");
        assert_eq!(relaxed["wrong"], 0, "{relaxed}");
        // Its name is free for the next.
        drop(group);
        let mut next = plan("short").start();
        next.report("ready");
        assert!(listed().contains("short"));
        next.stop();
        neighbour.stop();
        broker.wait("no lease", leases(0));
    });
}

/// Sets the host's clock, in seconds since 1970.
fn set_clock(seconds: u64) {
    let output = Command::new("date").args(["-s", &format!("@{seconds}")]).output().unwrap();
    assert!(output.status.success(), "{output:?}");
}

#[test]
#[ignore = "long"]
fn a_clock_that_jumps_disturbs_no_vm() {
    /// 1970, 2026, and 2106, which the real-time clock's 32 bits do not reach.
    const TIMES: [u64; 4] = [86_400, 1_795_000_000, 4_300_000_000, 1_795_000_000];
    Lab::new().as_root().alone().run(|| {
        let scratch = Scratch::new();
        let plan =
            Plan::workload("memory").with("--mte", "require").with("--tag-storage", "demand");
        let mut guest = plan.start();
        guest.report("ready");
        for (turn, seconds) in TIMES.into_iter().enumerate() {
            guest.order("press 8", "pressing");
            set_clock(seconds);
            let mut client = guest.client();
            client.pause().unwrap();
            let folder = scratch.join(&format!("saved{turn}"));
            let saved = guest.tesseractl(&["snapshot", folder.to_str().unwrap()]).output().unwrap();
            assert!(saved.status.success(), "{seconds}: {saved:?}");
            client.resume().unwrap();
            assert_eq!(guest.order("relax", "relaxed")["wrong"], 0);

            let mut restored = Plan::restore(&folder).flag("--lazy").start();
            restored.answers();
            assert_eq!(restored.order("relax", "relaxed")["wrong"], 0, "{seconds}");
            restored.stop();
        }
        guest.stop();
    });
}

#[test]
#[ignore = "long"]
fn a_vm_that_is_stopped_for_a_while_holds_up_no_other_and_continues() {
    Lab::new().as_root().run(|| {
        let broker = Broker::start(&["--capacity", "64M"]);
        let plan = |name| of_the_broker(&broker, name);
        let (mut stopped, mut neighbour) = (plan("stopped").start(), plan("neighbour").start());
        stopped.report("ready");
        neighbour.report("ready");
        stopped.order("press 16", "pressing");

        stopped.signal(Signal::STOP);
        neighbour.order("touch 300", "touched");
        assert_eq!(neighbour.order("free", "freed")["wrong"], 0);
        // A request ends with an error, and does not wait for good.
        let output = stopped.tesseractl(&["pause"]).output().unwrap();
        assert!(!output.status.success() && !output.stderr.is_empty(), "{output:?}");
        std::thread::sleep(Duration::from_secs(5));
        broker.wait("both leases", leases(2));
        stopped.signal(Signal::CONT);

        // The request whose client has gone is done all the same.
        let mut client = stopped.client();
        until("a VM that is paused", || {
            (client.instance().ok()?.state == State::Paused).then_some(())
        });
        client.resume().unwrap();
        assert_eq!(stopped.order("relax", "relaxed")["wrong"], 0);
        stopped.order("touch 100", "touched");
        assert_eq!(stopped.order("free", "freed")["wrong"], 0);
        stopped.stop();
        neighbour.stop();
        broker.wait("no lease", leases(0));
    });
}
