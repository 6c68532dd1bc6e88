//! A guest that is saved while it boots.

use std::time::{Duration, Instant};

use super::{beat, power_off, restore, save, verified};
use crate::guest::{Guest, Plan};
use crate::scratch::Scratch;

/// How often it is looked whether the guest has come as far as it should.
const LOOK: Duration = Duration::from_millis(5);

/// Saves a guest of this plan at so many moments of its boot, the first with its first instructions, and has each
/// snapshot boot to its end. Returns how many of them were before the start of the guest's init.
///
/// # Panics
/// When one of them does not come to its end, or has lost something.
pub fn moments_of_a_boot(plan: &Plan, moments: u32) -> u32 {
    let scratch = Scratch::new();
    let folder = scratch.join("one");
    // A boot takes this many instructions of the host, more or less; on a busy machine that is another time each day.
    let started = Instant::now();
    let mut whole = plan.clone().start();
    whole.report("ready");
    let step = started.elapsed() / moments;
    power_off(whole);
    let mut guest = plan.clone().start();
    // It has just begun.
    guest.answers();
    guest.client().pause().unwrap();
    let mut early = 0;
    for moment in 0..moments {
        if moment > 0 {
            run_for(&guest, step);
        }
        save(&guest, &folder, &["--keep-paused", "--replace"]);
        let mut restored = restore(&folder, moment % 2 == 1).start();
        // From the console of this process alone: the other guest's has what came before.
        beat(&mut restored);
        verified(&mut restored);
        restored.type_line("poweroff");
        let finished = restored.finish().expect_power_off();
        early += u32::from(!finished.reports("start").is_empty());
    }
    guest.client().resume().unwrap();
    beat(&mut guest);
    verified(&mut guest);
    power_off(guest);
    early
}

/// Lets a paused guest run for this long.
fn run_for(guest: &Guest, time: Duration) {
    guest.client().resume().unwrap();
    std::thread::sleep(time.max(LOOK));
    guest.client().pause().unwrap();
}
