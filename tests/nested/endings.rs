//! How a VM ends, and the exit status that says so.

use rustix::process::Signal;
use testing::guest::Plan;
use testing::lab::Lab;
use testing::scratch::Scratch;

/// An arm64 Image that runs `code` and nothing else.
pub(crate) fn image(code: &[u32]) -> Vec<u8> {
    let mut bytes = vec![0; 64];
    // b .+64: over the header to the code.
    bytes[0..4].copy_from_slice(&0x1400_0010_u32.to_le_bytes());
    let length = (64 + 4 * code.len()) as u64;
    bytes[16..24].copy_from_slice(&length.to_le_bytes());
    bytes[24..32].copy_from_slice(&0b1010_u64.to_le_bytes());
    bytes[56..60].copy_from_slice(b"ARM\x64");
    bytes.extend(code.iter().flat_map(|word| word.to_le_bytes()));
    bytes
}

#[test]
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
        for mode in ["off", "strict", "demand"] {
            for (signal, status) in
                [(Signal::HUP, 129), (Signal::INT, 130), (Signal::QUIT, 131), (Signal::TERM, 143)]
            {
                let mut guest = Plan::workload("idle").with("--tag-storage", mode).start();
                guest.report("ready");

                guest.signal(signal);

                let socket = guest.socket().to_owned();
                assert_eq!(guest.finish().code, Some(status), "{mode}: {signal:?}");
                assert!(!socket.exists());
            }
        }
    });
}

#[test]
fn an_access_to_nowhere_ends_the_vm_with_a_report() {
    // mov x0, #0x1000; mov x7, #0x77; then a load, or a store, at x0.
    const TO_NOWHERE: [u32; 2] = [0xd282_0000, 0xd280_0ee7];
    Lab::new().run(|| {
        let scratch = Scratch::new();
        for (name, access, word) in [
            ("load", 0xf940_0001, "a load of 8 bytes"),
            ("store", 0xb900_0001, "a store of 4 bytes"),
        ] {
            let kernel = scratch.file(name, image(&[TO_NOWHERE[0], TO_NOWHERE[1], access]));

            let finished = Plan::bare(&kernel).run();

            assert_eq!(finished.code, Some(70), "{finished:#?}");
            for part in [word, "0x1000", "vCPU 0", "pc  0000000080000048", "x7  0000000000000077"] {
                assert!(finished.messages.contains(part), "{part}: {}", finished.messages);
            }
        }
    });
}

#[test]
fn an_access_that_kvm_cannot_decode_ends_the_vm_with_a_report() {
    Lab::new().run(|| {
        let scratch = Scratch::new();
        // mov x0, #0x1000; ldp x1, x2, [x0]: a pair has no syndrome.
        let kernel = scratch.file("pair", image(&[0xd282_0000, 0xa940_0801]));

        let finished = Plan::bare(&kernel).run();

        assert_eq!(finished.code, Some(70), "{finished:#?}");
        for part in ["vCPU 0", "cannot decode", "0x1000"] {
            assert!(finished.messages.contains(part), "{part}: {}", finished.messages);
        }
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
