//! What holds for the policy whatever its host and its guest do.

use proptest::prelude::*;

use super::*;

const MEMORY: Bytes = Bytes::gib(1);
const FLOOR: Bytes = Bytes::mib(256);

/// Marks of 128, 160, 192, 256, 384 and 512 MiB.
const HOST: Bytes = Bytes::gib(2);

fn host(available_mib: u64) -> Host {
    Host { total: HOST, available: Bytes::mib(available_mib), stalled: 0 }
}

/// What a guest says that has so many MiB available, with so many in its balloon.
fn said(available_mib: u64, actual_mib: u64) -> Guest {
    let (available, actual) = (Bytes::mib(available_mib), Bytes::mib(actual_mib));
    Guest { available, actual, reworked: Bytes::ZERO }
}

/// A guest that uses so much and whose driver does at once what it is asked for; the host does as it is said.
struct Tame {
    policy: Policy,
    used: Bytes,
    resident: Bytes,
    reworked: Bytes,
}

impl Tame {
    fn new(used_mib: u64, resident_mib: u64, target_mib: u64) -> Self {
        Self {
            policy: Policy::new(MEMORY, FLOOR, Bytes::mib(target_mib)),
            used: Bytes::mib(used_mib),
            resident: Bytes::mib(resident_mib),
            reworked: Bytes::ZERO,
        }
    }

    fn look(&mut self, host: Host) -> u64 {
        let rest = MEMORY.saturating_sub(self.policy.target());
        self.policy.step(&Input {
            host,
            guest: Some(Guest {
                available: rest.saturating_sub(self.used),
                actual: self.policy.target(),
                reworked: self.reworked,
            }),
            has_driver: true,
            actual: self.policy.target(),
            resident: self.resident.min(rest),
            needed: Bytes::ZERO,
        });
        self.policy.target().as_mib()
    }

    fn looks(&mut self, count: u32, host: Host) -> u64 {
        (0..count).fold(self.policy.target().as_mib(), |_, _| self.look(host))
    }
}

#[test]
fn a_host_at_ease_asks_for_nothing() {
    let mut tame = Tame::new(100, 900, 0);

    assert_eq!(tame.looks(100, host(1800)), 0);
    assert_eq!((tame.policy.reason(), tame.policy.state()), (Reason::AtEase, State::Settled));
    assert!(!tame.policy.wants_guest(&host(1800)));
}

#[test]
fn a_host_that_is_short_has_what_the_guest_can_do_without() {
    let mut tame = Tame::new(100, 900, 0);

    let first = tame.look(host(200));
    assert_eq!(tame.policy.reason(), Reason::HostShort);
    assert_eq!(tame.policy.state(), State::Taking);
    let last = tame.looks(100, host(200));

    assert!(first > 0 && first <= 256, "{first}");
    // The floor is above what it uses and twice its reserve.
    assert_eq!(last, 768);
    assert_eq!((tame.policy.reason(), tame.policy.state()), (Reason::AtBottom, State::Settled));
}

#[test]
fn a_guest_keeps_what_it_uses_and_its_reserve() {
    let mut tame = Tame::new(500, 900, 0);

    assert_eq!(tame.looks(100, host(200)), 1024 - 500 - 128);
    // At the last of the host, a half of that.
    assert_eq!(tame.looks(100, host(100)), 1024 - 500 - 64);
}

#[test]
fn what_was_given_comes_back_when_the_host_is_at_ease() {
    let mut tame = Tame::new(100, 300, 700);

    let early = tame.looks(4, host(1500));
    let late = tame.looks(20, host(1500));

    assert_eq!((early, late), (700, 0));
}

#[test]
fn between_the_marks_nothing_changes() {
    for target in [0, 300, 600] {
        let mut tame = Tame::new(100, 1024 - target, target);

        assert_eq!(tame.looks(100, host(400)), target);
    }
}

#[test]
fn a_guest_may_grow_by_what_the_host_can_spare() {
    let mut tame = Tame::new(80, 100, 0);

    // 344 above the mark.
    assert_eq!(tame.looks(10, host(600)), 1024 - 100 - 344);
    assert_eq!(tame.policy.reason(), Reason::Growth);
    // What it takes of that itself changes nothing.
    tame.resident = Bytes::mib(300);
    tame.used = Bytes::mib(280);
    assert_eq!(tame.looks(100, host(400)), 1024 - 100 - 344);
}

#[test]
fn a_guest_that_is_short_gets_back_at_once_what_the_host_has() {
    let mut tame = Tame::new(250, 300, 760);

    let target = tame.look(host(300));

    // Its 264 MiB and 300 - 128 more.
    assert_eq!(target, 760 - 172);
    assert_eq!((tame.policy.reason(), tame.policy.state()), (Reason::GuestShort, State::Returning));
    // And it is not asked for them at once.
    tame.used = Bytes::mib(100);
    assert_eq!(tame.looks(30, host(150)), target);
}

#[test]
fn a_guest_whose_caches_were_short_gives_to_programs_that_are() {
    let mut tame = Tame::new(100, 900, 0);
    tame.looks(ECHO + 1, host(700));
    tame.reworked = Bytes::mib(20);
    tame.look(host(700));

    assert_eq!(tame.looks(20, host(170)), 0);
    assert!(tame.look(host(150)) > 0);
}

#[test]
fn a_guest_that_reads_again_what_it_dropped_gives_nothing_before_the_host_is_at_its_last() {
    let mut tame = Tame::new(100, 900, 0);
    let mut look = |available| {
        tame.reworked = Bytes::new(tame.reworked.get() + (20 << 20));
        tame.look(host(available))
    };

    // The first looks know of no balloon that made it do so.
    for available in [[700; ECHO as usize].as_slice(), &[200; 20]].concat() {
        assert_eq!(look(available), 0);
    }
    assert!(look(100) > 0);
}

#[test]
fn a_host_whose_tasks_wait_is_short() {
    let stalled = |stalled| Host { stalled, ..host(450) };

    assert_eq!(Tame::new(100, 900, 0).looks(20, stalled(99)), 0);
    let mut tame = Tame::new(100, 900, 0);
    assert!(tame.look(stalled(100)) > 0);
    assert_eq!(tame.policy.reason(), Reason::HostStalls);
}

#[test]
fn a_guest_whose_caches_are_short_is_given_little_that_it_does_not_touch() {
    let mut tame = Tame::new(100, 200, 700);
    for _ in 0..40 {
        tame.reworked = Bytes::new(tame.reworked.get() + (20 << 20));
        tame.look(host(300));
    }

    // There are 108 MiB above the mark that is for caches, and an eighth of its memory.
    assert_eq!(tame.policy.target().as_mib(), 1024 - 200 - 108 - 128);
}

#[test]
fn a_guest_that_is_short_gets_back_what_it_gave_here_while_others_need_memory_of_it() {
    let mut policy = Policy::new(MEMORY, FLOOR, Bytes::mib(400));
    let actual = Bytes::mib(400 + 256);
    policy.step(&Input {
        host: host(300),
        guest: Some(Guest { available: Bytes::mib(10), actual, reworked: Bytes::ZERO }),
        has_driver: true,
        actual,
        resident: Bytes::mib(350),
        needed: Bytes::mib(256),
    });

    // It uses 358 MiB beside the 256.
    let target = 1024 - (358 + 256 + 172);
    assert_eq!((policy.target().as_mib(), policy.reason()), (target, Reason::GuestShort));
}

#[test]
fn a_driver_that_gives_no_more_is_asked_for_no_more() {
    let mut policy = Policy::new(MEMORY, FLOOR, Bytes::ZERO);
    let input = Input {
        host: host(50),
        guest: Some(said(900, 0)),
        has_driver: true,
        actual: Bytes::mib(40),
        resident: Bytes::mib(900),
        needed: Bytes::ZERO,
    };
    (0..30).for_each(|_| policy.step(&input));

    assert_eq!((policy.target(), policy.reason()), (Bytes::mib(40), Reason::Refused));
}

#[test]
fn without_a_driver_the_target_waits_for_one() {
    let mut policy = Policy::new(MEMORY, FLOOR, Bytes::mib(400));
    let mut input = Input {
        host: host(1800),
        guest: None,
        has_driver: false,
        actual: Bytes::ZERO,
        resident: Bytes::mib(100),
        needed: Bytes::ZERO,
    };
    (0..100).for_each(|_| policy.step(&input));
    assert_eq!((policy.target(), policy.reason()), (Bytes::mib(400), Reason::Silent));

    // Neither at ease nor short: what it gives slowly is no refusal.
    (input.has_driver, input.host) = (true, host(400));
    for actual in 1..40 {
        input.actual = Bytes::mib(actual * 10);
        policy.step(&input);
        assert_eq!(policy.target(), Bytes::mib(400), "{:?}", policy.reason());
    }
}

#[test]
fn what_a_guest_has_available_goes_with_the_balloon_that_it_had_then() {
    let mut policy = Policy::new(MEMORY, FLOOR, Bytes::mib(300));
    // It uses 324: of what it said it had, it has given 300 since.
    let input = Input {
        host: host(200),
        guest: Some(said(700, 0)),
        has_driver: true,
        actual: Bytes::mib(300),
        resident: Bytes::mib(700),
        needed: Bytes::ZERO,
    };
    policy.step(&input);

    assert_eq!(policy.used, Some(Bytes::mib(324)));
}

#[test]
fn while_others_need_memory_of_the_guest_it_is_not_asked_for_more() {
    let mut policy = Policy::new(MEMORY, FLOOR, Bytes::ZERO);
    let input = Input {
        host: host(200),
        guest: Some(said(900, 0)),
        has_driver: true,
        actual: Bytes::ZERO,
        resident: Bytes::mib(900),
        needed: Bytes::mib(64),
    };
    (0..7).for_each(|_| policy.step(&input));

    assert_eq!((policy.target(), policy.reason()), (Bytes::ZERO, Reason::Others));
}

#[test]
fn a_guest_that_says_nothing_is_asked_for_nothing() {
    let mut policy = Policy::new(MEMORY, FLOOR, Bytes::ZERO);
    let input = Input {
        host: host(10),
        guest: None,
        has_driver: true,
        actual: Bytes::ZERO,
        resident: Bytes::mib(900),
        needed: Bytes::ZERO,
    };
    (0..100).for_each(|_| policy.step(&input));

    assert_eq!((policy.target(), policy.reason()), (Bytes::ZERO, Reason::Silent));
}

fn size() -> impl Strategy<Value = Bytes> {
    prop_oneof![0u64..4 << 30, 0u64..1 << 50, Just(u64::MAX), any::<u64>()].prop_map(Bytes::new)
}

fn input() -> impl Strategy<Value = Input> {
    let guest = (size(), size(), size()).prop_map(|(available, actual, reworked)| Guest {
        available,
        actual,
        reworked,
    });
    let host = (size(), size(), 0u16..=1000).prop_map(|(total, available, stalled)| Host {
        total,
        available,
        stalled,
    });
    (host, proptest::option::of(guest), any::<bool>(), size(), size(), size()).prop_map(
        |(host, guest, has_driver, actual, resident, needed)| Input {
            host,
            guest,
            has_driver,
            actual,
            resident,
            needed,
        },
    )
}

proptest! {
    #[test]
    fn whatever_is_seen_the_guest_has_its_floor_and_targets_go_in_steps(
        memory in 1u64..1 << 20, floor in 0u64..1 << 20, target in 0u64..1 << 20,
        inputs in prop::collection::vec(input(), 1..60),
    ) {
        let (memory, floor) = (Bytes::mib(memory), Bytes::mib(floor.min(memory)));
        let mut policy = Policy::new(memory, floor, Bytes::mib(target));
        for input in inputs {
            let before = policy.target();
            policy.step(&input);
            let target = policy.target();

            prop_assert!(target.is_multiple_of(UNIT));
            prop_assert!(target <= memory.saturating_sub(floor), "{:?}", policy);
            let step = Bytes::new(memory.get() / STEP_SHARE).max(UNIT);
            let most = before.get() + step.get();
            prop_assert!(target.get() <= most, "{} then {}: {:?}", before, target, policy);
            if policy.reason() != Reason::Refused {
                let least = before.get().saturating_sub(step.get() + UNIT.get());
                prop_assert!(target.get() >= least, "{} then {}: {:?}", before, target, policy);
            }
        }
    }

    #[test]
    fn with_a_host_and_a_guest_that_stand_still_the_target_goes_one_way_and_stops(
        used in 40u64..1000, cached in 0u64..1000, target in 0u64..1024, available in 0u64..2048,
    ) {
        let mut tame = Tame::new(used, used + cached, target);
        let host = host(available);
        // From the time on when the host has been at ease for long.
        tame.looks(EASED, host);
        let targets: Vec<u64> = (0..160).map(|_| tame.look(host)).collect();

        let is_rising = targets.is_sorted();
        let is_falling = targets.is_sorted_by(|a, b| a >= b);
        prop_assert!(is_rising || is_falling, "{:?}", targets);
        let last = targets[targets.len() - 20..].iter().all(|target| *target == targets[140]);
        prop_assert!(last, "{:?}", targets);
    }

    #[test]
    fn no_guest_is_made_short(
        used in 40u64..1000, cached in 0u64..1000, available in 0u64..2048, looks in 1u32..60,
    ) {
        let mut tame = Tame::new(used, used + cached, 0);
        let left = 1024 - tame.looks(looks, host(available));

        prop_assert!(left == 1024 || left >= used + 64, "{} left", left);
    }
}

#[test]
fn a_guest_that_gives_nothing_more_to_others_keeps_what_it_was_to_give() {
    let mut policy = Policy::new(MEMORY, FLOOR, Bytes::mib(400));
    let guest = said(100, 400);
    let (actual, resident) = (Bytes::mib(400), Bytes::mib(600));

    for _ in 0..8 * LOOKS_A_SECOND {
        let (host, needed) = (host(300), Bytes::mib(128));
        policy.step(&Input {
            host,
            guest: Some(guest),
            has_driver: true,
            actual,
            resident,
            needed,
        });
    }

    assert_eq!(policy.target(), Bytes::mib(400));
}
