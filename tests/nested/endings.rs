//! How a VM ends, and the exit status that says so.

use rustix::process::Signal;
use testing::bare::image;
use testing::broker::Broker;
use testing::guest::Plan;
use testing::lab::Lab;
use testing::scratch::Scratch;
use vmm::tag_storage::broker::BrokerReport;

#[test]
#[ignore = "long"]
fn each_ending_of_the_guests_has_its_status() {
    Lab::new().run(|| {
        for (workload, status) in [("poweroff", 0), ("reboot", 10), ("panic", 11)] {
            let finished = Plan::workload(workload).run();

            assert_eq!(finished.code, Some(status), "{workload}: {finished:#?}");
        }
        // As many of Firecracker's users have it.
        let finished = Plan::workload("panic").append("reboot=k panic=1").run();
        assert_eq!(finished.code, Some(11), "{finished:#?}");
    });
}

#[test]
fn a_panic_of_a_guest_without_init_has_its_status() {
    Lab::new().run(|| {
        let finished = Plan::workload("none").append("rdinit=/nowhere root=/dev/nowhere").run();

        assert_eq!(finished.code, Some(11), "{finished:#?}");
        assert!(finished.messages.contains("panicked"), "{finished:#?}");
    });
}

#[test]
fn signals_end_the_vm_with_the_shells_statuses() {
    Lab::new().run(|| {
        let broker = Broker::start(&["--capacity", "64M"]);
        let (strict, demand) = (("--tag-storage", "strict"), ("--tag-storage", "demand"));
        let shared = ("--broker", broker.socket());
        for (mode, flags) in [
            ("no tag storage", &[("--tag-storage", "off")][..]),
            ("strict", &[strict]),
            ("strict, broker", &[strict, shared]),
            ("demand", &[demand]),
            ("demand, broker", &[demand, shared]),
        ] {
            for (signal, status) in
                [(Signal::HUP, 129), (Signal::INT, 130), (Signal::QUIT, 131), (Signal::TERM, 143)]
            {
                let plan = Plan::workload("idle").with("--mte", "require");
                let plan = flags.iter().fold(plan, |plan, (flag, value)| plan.with(flag, value));
                let guest = plan.start();
                // All threads run by then; what the guest does is of no account.
                guest.answers();
                let has_tags = |report: &BrokerReport| report.pool.chunks.reserved > 0;
                if flags.contains(&shared) {
                    broker.wait("tag storage for the VM", has_tags);
                }

                guest.signal(signal);

                let socket = guest.socket().to_owned();
                assert_eq!(guest.finish().code, Some(status), "{mode}: {signal:?}");
                assert!(!socket.exists(), "{mode}: {signal:?}");
                broker.wait("its lease to end", |report| {
                    report.pool.leases.is_empty() && !has_tags(report)
                });
            }
        }
        let path = broker.path().to_owned();
        assert_eq!(broker.end().0, Some(143));
        assert!(!path.exists());
    });
}

/// A guest that makes one access at 0x1000, where nothing is. It powers off if that ends in a synchronous
/// external abort, and resets if it ends in anything else.
fn accessing_nowhere(access: u32) -> Vec<u8> {
    // mov w0, #0x8400_0008 (SYSTEM_OFF) or #0x8400_0009 (SYSTEM_RESET); hvc #0.
    let psci = |low: u32| [low, 0x72b0_8000, 0xd400_0002];
    let (off, reset) = (psci(0x5280_0100), psci(0x5280_0120));
    // adr x1, vectors; msr vbar_el1, x1; isb; mov x0, #0x1000.
    let mut code = vec![0x1000_3e01, 0xd518_c001, 0xd503_3fdf, 0xd282_0000, access];
    code.extend(reset);
    // The vectors are at 0x800, and a synchronous exception of EL1 with its own stack comes to 0xa00.
    code.resize((0xa00 - 64) / 4, 0);
    // mrs x2, esr_el1; and w3, w2, #0x3f; cmp w3, #0x10; b.ne reset.
    code.extend([0xd538_5202, 0x1200_1443, 0x7100_407f, 0x5400_0081]);
    code.extend(off);
    code.extend(reset);
    image(&code)
}

#[test]
fn an_access_to_nowhere_is_an_external_abort_at_every_width() {
    Lab::new().run(|| {
        let scratch = Scratch::new();
        for (name, access, words) in [
            ("ldrb", 0x3940_0001, "a load of 1 bytes"),
            ("ldrh", 0x7940_0001, "a load of 2 bytes"),
            ("ldr32", 0xb940_0001, "a load of 4 bytes"),
            ("ldr64", 0xf940_0001, "a load of 8 bytes"),
            ("strb", 0x3900_0001, "a store of 1 bytes"),
            ("strh", 0x7900_0001, "a store of 2 bytes"),
            ("str32", 0xb900_0001, "a store of 4 bytes"),
            ("str64", 0xf900_0001, "a store of 8 bytes"),
            // A pair has no syndrome.
            ("ldp", 0xa940_0801, "cannot decode"),
        ] {
            let kernel = scratch.file(name, accessing_nowhere(access));

            let finished = Plan::bare(&kernel).run();

            assert_eq!(finished.code, Some(0), "{name}: {finished:#?}");
            for part in [words, "0x1000", "vCPU 0", "external abort"] {
                assert!(finished.messages.contains(part), "{name}, {part}: {finished:#?}");
            }
        }
    });
}

#[test]
fn a_process_that_accesses_nowhere_gets_sigbus_and_the_vm_continues() {
    Lab::new().run(|| {
        let mut guest = Plan::workload("unserved").start();

        let ends = guest.report("ends");

        for access in ["read", "write"] {
            assert_eq!(ends[access], Signal::BUS.as_raw(), "{ends}");
        }
        let mut client = guest.client();
        let metrics = client.metrics().unwrap();
        assert_eq!(metrics["vcpu"]["external_aborts_total"], 2, "{metrics}");
        client.stop().unwrap();
        let finished = guest.finish();
        assert_eq!(finished.code, Some(12), "{finished:#?}");
        assert_eq!(
            finished.messages.matches("takes an external abort").count(),
            1,
            "{finished:#?}"
        );
    });
}

#[test]
fn an_interrupt_at_any_moment_leaves_nothing_behind() {
    Lab::new().run(|| {
        let scratch = Scratch::new();
        for step in 0..24 {
            // On demand, a thread runs before the kernel is loaded.
            let mode = ["off", "demand"][step as usize % 2];
            let plan = Plan::workload("idle").with("--serial", "none");
            let mut command = plan.with("--tag-storage", mode).command();
            command.arg("--api-sock").arg(scratch.join("sock"));
            let mut child = command.spawn().unwrap();
            // Not to wait for something: to hit another moment each time.
            std::thread::sleep(std::time::Duration::from_millis(step * step / 2));
            let pid = rustix::process::Pid::from_child(&child);

            rustix::process::kill_process(pid, Signal::INT).unwrap();

            let status = child.wait().unwrap();
            use std::os::unix::process::ExitStatusExt;
            let interrupted = status.code() == Some(130) || status.signal() == Some(2);
            assert!(interrupted, "step {step}: {status}");
            assert!(scratch.names().is_empty(), "step {step}: {:?}", scratch.names());
        }
    });
}
