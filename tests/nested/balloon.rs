//! The balloon: inflated, deflated, asked for statistics, left out, while a real driver is on the other side.

use std::process::{Output, Stdio};

use serde_json::{Value, json};
use tesseractl::client::{Client, Error};
use testing::balloon::reaches;
use testing::footprint::Footprint;
use testing::guest::{Guest, Plan};
use testing::lab::Lab;
use testing::wait::{until, while_changing};

use crate::reporting::{plan, start};

fn balloon(client: &mut Client) -> Value {
    client.get("/balloon").unwrap()
}

/// Sets a target, in MiB.
fn aim(client: &mut Client, target: u64) {
    client.send("PATCH", "/balloon", &json!({ "amount_mib": target })).unwrap();
    assert_eq!(balloon(client)["amount_mib"], target);
}

/// Waits until a balloon has a target, in MiB, to the page, by the device's, the driver's and the guest's
/// count. They differ while pages are on their way, or the guest's kernel moves one: the new page goes in
/// before the old one comes out.
fn settles(guest: &mut Guest, target: u64, what: &str) {
    let mut client = guest.client();
    while_changing(&format!("{what}: exactly {target} MiB in the balloon"), || {
        // The cheapest first: a footprint is counted page by page, by the thread that serves the balloon.
        let actual = balloon(&mut client)["actual_mib"].as_u64().unwrap();
        if actual != target {
            return Err(actual);
        }
        let of_guest = guest.order("figures", "figures")["balloon_bytes"].as_u64().unwrap();
        let inflated = Footprint::of(&mut client).inflated;
        if of_guest == target << 20 && inflated == target << 20 { Ok(()) } else { Err(actual) }
    });
}

#[test]
#[ignore = "long"]
fn a_balloon_goes_up_and_down_twenty_times_under_memory_pressure() {
    // MiB: of the guest, of what presses on it, of targets within and beyond what is left.
    const MEMORY: u64 = 256;
    const PRESSURE: u64 = 64;
    const WITHIN: u64 = 8;
    const BEYOND: u64 = 224;
    // So much in the balloon leaves less than a round then touches.
    const NEARLY_ALL: u64 = 80;
    // A guest that presses, inflates and talks on two processors may take minutes on a busy machine.
    Lab::new().run(|| {
        let mut guest = start(plan(MEMORY).with("--cpus", "2"));
        let mut client = guest.client();
        guest.order(&format!("press {PRESSURE}"), "pressing");
        for round in 0..20 {
            aim(&mut client, WITHIN);
            settles(&mut guest, WITHIN, &format!("round {round}, up"));
            // Now and then a round asks for more than there is: the guest takes back what it needs.
            if round % 10 == 4 {
                aim(&mut client, BEYOND);
                let most = while_changing("a balloon that takes nearly all", || {
                    let actual = balloon(&mut client)["actual_mib"].as_u64().unwrap();
                    if actual > NEARLY_ALL { Ok(actual) } else { Err(actual) }
                });
                // While the balloon is below its target, the driver deflates it for one reason only.
                let deflated = |guest: &mut Guest| {
                    guest.order("figures", "figures")["balloon_pages_back"].as_u64().unwrap()
                };
                let before = deflated(&mut guest);
                guest.order("touch 64", "touched");
                let back = deflated(&mut guest) - before;
                println!("round {round}: {most} MiB, {back} pages taken back under pressure");
                assert!(back > 0, "round {round}: the guest took nothing back");
                assert_eq!(guest.order("free", "freed")["wrong"], 0);
            }
            aim(&mut client, 0);
            settles(&mut guest, 0, &format!("round {round}, down"));
        }
        let relaxed = guest.order("relax", "relaxed");
        assert_eq!((&relaxed["wrong"], &relaxed["killed"]), (&json!(0), &json!(0)), "{relaxed}");
        assert!(relaxed["pieces"].as_u64().unwrap() > PRESSURE / 2, "{relaxed}");
        println!("{relaxed}");
        guest.type_line("poweroff");
        guest.finish().expect_power_off();
    });
}

#[test]
fn what_is_in_the_balloon_is_not_resident() {
    Lab::new().run(|| {
        // Without reporting, so that nothing else gives memory back.
        let plan = plan(512).with("--balloon", "reporting=off,target=100M");
        let mut guest = start(plan);
        let mut client = guest.client();
        settles(&mut guest, 100, "the target of the start");
        guest.order("touch 256", "touched");
        guest.order("free", "freed");
        let before = Footprint::of(&mut client);

        aim(&mut client, 350);
        settles(&mut guest, 350, "a higher target");

        let after = Footprint::of(&mut client);
        // The guest's kernel moves a page of the balloon now and then: one more or less is there for a moment.
        assert!(after.inflated.abs_diff(350 << 20) <= 1 << 20, "{after:?}");
        assert!(after.resident + (180 << 20) < before.resident, "{before:?} {after:?}");
        assert!(after.resident <= after.guest - (349 << 20), "{after:?}");
        assert_eq!(after.failed, 0);
        // Memory that went page by page comes back in huge pages.
        aim(&mut client, 0);
        reaches(&mut client, 0);
        guest.order("touch 256", "touched");
        let again = Footprint::of(&mut client);
        assert!(again.resident > (256 << 20), "{again:?}");
        assert!(again.huge > again.resident / 10 * 9, "{again:?}");
        guest.stop();
    });
}

fn tesseractl(guest: &Guest, arguments: &[&str]) -> Output {
    guest.tesseractl(arguments).output().unwrap()
}

fn said(output: &Output) -> String {
    assert!(output.status.success(), "{output:?}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn a_balloon_is_read_and_changed_through_its_socket() {
    Lab::new().run(|| {
        let mut guest = start(plan(512).with("--balloon", "stats=1"));
        let mut client = guest.client();
        let first = balloon(&mut client);
        assert_eq!(first["amount_mib"], 0, "{first}");
        assert_eq!(first["deflate_on_oom"], true, "{first}");
        assert_eq!(first["stats_polling_interval_s"], 1, "{first}");
        assert_eq!(first["free_page_reporting"], true, "{first}");

        // Statistics come by themselves, once a second.
        let total = guest.order("figures", "figures")["total_kib"].as_u64().unwrap() << 10;
        let statistics = until("statistics", || {
            let statistics: Value = client.get("/balloon/statistics").ok()?;
            statistics["total_memory"].is_u64().then_some(statistics)
        });
        let bytes = |name: &str| statistics[name].as_u64().unwrap();
        assert_eq!(bytes("total_memory"), total, "{statistics}");
        assert!(bytes("free_memory") < total && bytes("available_memory") < total, "{statistics}");
        assert!(bytes("free_memory") > 100 << 20, "{statistics}");
        guest.order("touch 200", "touched");
        until("statistics of a guest with less free memory", || {
            let now: Value = client.get("/balloon/statistics").unwrap();
            let free = now["free_memory"].as_u64().unwrap();
            (free + (150 << 20) < bytes("free_memory")).then_some(())
        });

        client
            .send("PATCH", "/balloon/statistics", &json!({ "stats_polling_interval_s": 3 }))
            .unwrap();
        assert_eq!(balloon(&mut client)["stats_polling_interval_s"], 3);

        // The same by the client for people.
        said(&tesseractl(&guest, &["balloon", "target", "64M"]));
        reaches(&mut client, 64);
        let shown = said(&tesseractl(&guest, &["balloon"]));
        assert!(shown.contains("64"), "{shown}");
        said(&tesseractl(&guest, &["balloon", "reporting", "off"]));
        assert_eq!(balloon(&mut client)["free_page_reporting"], false);
        let shown = said(&tesseractl(&guest, &["balloon", "stats"]));
        assert!(shown.contains("Free memory"), "{shown}");
        let footprint = said(&tesseractl(&guest, &["footprint"]));
        assert!(footprint.contains("Resident"), "{footprint}");
        guest.stop();
    });
}

#[test]
fn a_guest_without_a_balloon_says_so_and_flags_that_conflict_are_refused() {
    Lab::new().run(|| {
        let mut guest = Plan::workload("idle").flag("--no-balloon").start();
        guest.report("ready");
        let mut client = guest.client();
        for path in ["/balloon", "/balloon/statistics"] {
            match client.get::<Value>(path) {
                Err(Error::Refused { status: 400, message }) => {
                    assert!(message.contains("--no-balloon"), "{message}");
                }
                other => panic!("{path}: {other:?}"),
            }
        }
        assert!(Footprint::of(&mut client).resident > 0);
        guest.stop();

        for (status, flags) in [
            (64, ["--no-balloon", "--balloon", "target=64M"]),
            (78, ["--balloon", "target=1G", "--rng"]),
            (64, ["--balloon", "reporting=maybe", "--rng"]),
        ] {
            let plan = flags.iter().fold(Plan::workload("idle"), |plan, flag| plan.flag(flag));
            let output = plan.command().stdin(Stdio::null()).output().unwrap();

            let message = String::from_utf8_lossy(&output.stderr);
            assert_eq!(output.status.code(), Some(status), "{flags:?}: {message}");
            assert!(message.contains("balloon"), "{flags:?}: {message}");
        }
    });
}

#[test]
fn locked_memory_is_not_reported_and_the_vmm_says_why() {
    Lab::new().as_root().run(|| {
        let mut guest = start(plan(256).flag("--lock-memory"));
        let mut client = guest.client();

        let balloon = balloon(&mut client);

        assert_eq!(balloon["free_page_reporting"], false, "{balloon}");
        let reason = balloon["reporting"]["reason"].as_str().unwrap();
        assert!(reason.contains("lock"), "{balloon}");
        let footprint = Footprint::of(&mut client);
        assert_eq!(footprint.resident, footprint.guest, "{footprint:?}");
        guest.type_line("poweroff");
        let finished = guest.finish().expect_power_off();
        assert!(finished.messages.contains("lock"), "{finished:#?}");
    });
}
