//! What a change of the balloon is held to.
#![allow(clippy::unwrap_used)]

use proptest::option;
use proptest::prelude::*;

use super::*;

const MEMORY: Bytes = Bytes::mib(512);

fn of(request: &Request, limits: &Limits) -> Result<Change, String> {
    Change::new(request, limits).map_err(|error| error.to_string())
}

fn change(
    target_mib: Option<u64>,
    reporting: Option<bool>,
    offered: bool,
) -> Result<Change, String> {
    let request = Request { target_mib, reporting, ..Request::default() };
    of(&request, &Limits { memory: MEMORY, reporting: offered, auto: true })
}

#[test]
fn what_is_named_is_changed_and_the_rest_is_not() {
    let target = Some(Bytes::mib(64));

    // The client's choice ends that of the VMM.
    let chosen = Change { target, auto: Some(false), ..Change::default() };
    assert_eq!(change(Some(64), None, false), Ok(chosen));
    let reporting = Some(false);
    assert_eq!(change(None, reporting, true), Ok(Change { reporting, ..Change::default() }));
}

#[test]
fn the_vmm_chooses_from_a_target_on_where_that_is_asked_for() {
    let limits = Limits { memory: MEMORY, reporting: true, auto: true };
    let request = Request {
        target_mib: Some(64),
        auto: Some(true),
        floor_mib: Some(128),
        ..Request::default()
    };

    let (target, floor) = (Some(Bytes::mib(64)), Some(Bytes::mib(128)));
    let expected = Change { target, auto: Some(true), floor, reporting: None };
    assert_eq!(of(&request, &limits), Ok(expected));
    let message = of(&request, &Limits { auto: false, ..limits }).unwrap_err();
    assert!(message.contains("--lock-memory"), "{message}");
    let floor = Request { floor_mib: Some(513), ..Request::default() };
    assert!(of(&floor, &limits).unwrap_err().contains("floor_mib"));
}

#[test]
fn nothing_at_all_is_refused() {
    assert!(change(None, None, true).unwrap_err().contains("nothing to change"));
}

#[test]
fn reporting_that_was_not_offered_cannot_be_switched_either_way() {
    for on in [false, true] {
        let message = change(Some(1), Some(on), false).unwrap_err();
        assert!(message.contains("not offered"), "{message}");
    }
}

proptest! {
    #[test]
    fn a_target_is_at_most_the_guests_memory(
        mib in prop_oneof![0u64..2048, any::<u64>()], reporting in option::of(any::<bool>()),
    ) {
        match change(Some(mib), reporting, true) {
            Ok(change) => {
                prop_assert_eq!(change.target, Some(Bytes::mib(mib)));
                prop_assert!(mib <= 512);
            }
            Err(message) => {
                prop_assert!(message.contains("more than the guest's 512 MiB"), "{}", message);
                prop_assert!(mib > 512);
            }
        }
    }
}
