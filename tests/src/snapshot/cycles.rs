//! One guest that is saved and restored many times over.

use vmm::api::model::State;

use super::{continues, power_off, restore, save, verified};
use crate::guest::Plan;
use crate::scratch::Scratch;

/// Saves and restores a guest of this plan so many times in a row, each time in another process, with its memory loaded
/// first and as it is touched in turn. All of its memory is looked at after each.
///
/// # Panics
/// When anything is not as it was, or the folder has more than the last snapshot.
pub fn cycles(plan: Plan, rounds: u32) {
    let scratch = Scratch::new();
    let folder = scratch.join("one");
    let mut guest = plan.start();
    let ready = guest.report("ready");
    let mut before = verified(&mut guest);
    for round in 0..rounds {
        save(&guest, &folder, &["--keep-paused", "--replace"]);
        assert_eq!(guest.client().instance().unwrap().state, State::Paused);
        guest.stop();
        guest = restore(&folder, round % 2 == 1).start();
        let after = verified(&mut guest);
        continues(&ready, &before, &after);
        before = after;
    }
    assert_eq!(scratch.names(), ["one"]);
    power_off(guest);
}
