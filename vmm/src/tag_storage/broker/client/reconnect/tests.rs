use std::cell::Cell;

use super::*;
use crate::tag_storage::broker::testing::Scripted;

#[test]
fn a_panic_does_not_end_the_search_for_a_broker() {
    let (client, _side) = Scripted::new().client();
    let runs = Cell::new(0);
    // Nothing to wait for between two runs.
    client.0.state().settle_now = true;

    supervise(&client.0, |shared| {
        runs.set(runs.get() + 1);
        assert!(runs.get() > 1, "on purpose");
        reconnect(shared);
    });

    assert_eq!(runs.get(), 2);
    assert!(!client.0.state().reconnecting);
}
