//! `--balloon auto`: a VMM whose control group is short of memory takes what its guest can do without, and gives it back.

use std::time::Duration;

use serde_json::{Value, json};
use tesseractl::client::Client;
use testing::balloon::reaches;
use testing::control_group::ControlGroup;
use testing::footprint::{Footprint, mib};
use testing::guest::{Guest, Plan};
use testing::lab::Lab;
use testing::wait::{until, while_changing};

/// MiB: of the guest, of what it has used and freed, and what it keeps in any case.
const MEMORY: &str = "1G";
const USED: u64 = 600;
const FLOOR: u64 = 200;

/// MiB: what the group may have, and of that what the policy keeps available in it (three sixteenths), less some for
/// what the driver takes at a time.
const LIMIT: u64 = 640;
const LEFT: u64 = 100;

fn balloon(client: &mut Client) -> Value {
    client.get("/balloon").unwrap()
}

/// The courses that the VMM has told of so far.
fn courses(guest: &Guest) -> Vec<String> {
    let mut events = guest.client().events().unwrap();
    let mut found = Vec::new();
    // An event more, so that all before it have come.
    guest.client().pause().unwrap();
    guest.client().resume().unwrap();
    let patience = Some(Duration::from_secs(60));
    while let Some(event) = events.next(patience).unwrap() {
        let event = serde_json::to_value(&event).unwrap();
        match event["event"].as_str() {
            Some("balloon_auto") => found.push(event["state"].as_str().unwrap().to_owned()),
            Some("resumed") => break,
            _ => {}
        }
    }
    found
}

#[test]
#[ignore = "long"]
fn a_control_group_that_is_short_gets_what_the_guest_can_do_without() {
    Lab::new().as_root().run(|| {
        // What the guest frees stays resident, as what it has in caches would.
        let balloon_of = format!("auto,reporting=off,floor={FLOOR}M");
        let plan = Plan::workload("memory").with("--memory", MEMORY).with("--mte", "require");
        let mut guest = plan.with("--balloon", &balloon_of).start();
        let group = ControlGroup::new("auto-balloon", guest.pid());
        guest.report("ready");
        let mut client = guest.client();
        guest.order(&format!("touch {USED}"), "touched");
        assert_eq!(guest.order("free", "freed")["wrong"], 0);
        let before = Footprint::of(&mut client).resident;
        assert!(before >= USED << 20, "{before}");
        assert_eq!(balloon(&mut client)["auto"]["on"], true);
        assert_eq!(balloon(&mut client)["amount_mib"], 0);

        group.set("memory.high", &format!("{LIMIT}M"));
        while_changing("memory of the group", || {
            let current = group.current();
            if current <= (LIMIT - LEFT) << 20 { Ok(()) } else { Err(current >> 20) }
        });
        let taken = balloon(&mut client);
        println!(
            "{:.0} MiB resident, then {:.0}: {taken}",
            mib(before),
            mib(Footprint::of(&mut client).resident)
        );
        assert!(taken["amount_mib"].as_u64().unwrap() <= 1024 - FLOOR, "{taken}");

        group.set("memory.high", "max");
        reaches(&mut client, 0);
        until("a VMM that has settled", || {
            let auto = &balloon(&mut client)["auto"];
            (auto["state"] == "settled" && auto["reason"] == "host_at_ease").then_some(())
        });
        let courses = courses(&guest);
        for course in ["taking", "returning", "settled"] {
            assert!(courses.iter().any(|told| told == course), "{courses:?}");
        }

        // A target that a client names is its choice.
        client.send("PATCH", "/balloon", &json!({ "amount_mib": 64 })).unwrap();
        reaches(&mut client, 64);
        assert_eq!(balloon(&mut client)["auto"], json!({ "on": false, "floor_mib": FLOOR }));
        client.send("PATCH", "/balloon", &json!({ "auto": true })).unwrap();
        reaches(&mut client, 0);
        guest.stop();
    });
}
