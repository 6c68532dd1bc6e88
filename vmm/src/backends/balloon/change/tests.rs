//! What a change of the balloon is held to.
#![allow(clippy::unwrap_used)]

use proptest::option;
use proptest::prelude::*;

use super::*;

const MEMORY: Bytes = Bytes::mib(512);

fn change(
    target_mib: Option<u64>,
    reporting: Option<bool>,
    offered: bool,
) -> Result<Change, String> {
    Change::new(target_mib, reporting, MEMORY, offered).map_err(|error| error.to_string())
}

#[test]
fn what_is_named_is_changed_and_the_rest_is_not() {
    let target = Some(Bytes::mib(64));

    assert_eq!(change(Some(64), None, false), Ok(Change { target, reporting: None }));
    let reporting = Some(false);
    assert_eq!(change(None, reporting, true), Ok(Change { target: None, reporting }));
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
