#![allow(clippy::unwrap_used)]

use super::*;

const MEMORY: Bytes = Bytes::mib(512);

fn with(section: BalloonSection) -> Result<BalloonSpec, Error> {
    BalloonSpec::new(BalloonSetting::Section(section), MEMORY, false).map(Option::unwrap)
}

fn of_mib(mib: u64) -> BalloonSection {
    BalloonSection { amount_mib: Some(mib), ..BalloonSection::default() }
}

#[test]
fn a_vm_has_a_balloon_with_reporting_unless_it_is_told_otherwise() {
    let unsaid = BalloonSpec::new(BalloonSetting::Default, MEMORY, true).unwrap();
    let empty = with(BalloonSection::default()).unwrap();
    let none = BalloonSpec::new(BalloonSetting::None, MEMORY, true).unwrap();

    let default = BalloonSpec {
        reporting: true,
        deflate_on_oom: true,
        target: Bytes::ZERO,
        stats_interval_s: 0,
        auto: false,
        floor: None,
    };
    assert_eq!((unsaid, empty, none), (Some(default), default, None));
}

#[test]
fn what_is_said_stands() {
    let section = BalloonSection {
        amount_mib: Some(128),
        deflate_on_oom: Some(false),
        stats_polling_interval_s: Some(5),
        free_page_reporting: Some(false),
        auto: Some(true),
        floor_mib: Some(200),
        ..BalloonSection::default()
    };

    let spec = with(section.clone()).unwrap();

    assert_eq!(spec.target, Bytes::mib(128));
    assert_eq!((spec.reporting, spec.deflate_on_oom), (false, false));
    assert_eq!(spec.stats_interval_s, 5);
    assert_eq!((spec.auto, spec.floor), (true, Some(Bytes::mib(200))));
    assert_eq!(spec.to_section(), section);
}

#[test]
fn a_target_and_a_floor_are_at_most_the_guests_memory() {
    assert_eq!(with(of_mib(512)).unwrap().target, MEMORY);
    for mib in [513, (1 << 44) - 1, 1 << 44, u64::MAX] {
        let error = with(of_mib(mib)).unwrap_err();
        assert_eq!(error, Error::Target { mib, memory: MEMORY });
        let section = BalloonSection { floor_mib: Some(mib), ..BalloonSection::default() };
        assert_eq!(with(section).unwrap_err(), Error::Floor { mib, memory: MEMORY });
    }
}

#[test]
fn memory_that_is_fixed_is_not_the_vmms_to_give() {
    let auto = |auto| BalloonSetting::Section(BalloonSection { auto, ..BalloonSection::default() });

    assert_eq!(BalloonSpec::new(auto(Some(true)), MEMORY, true), Err(Error::Fixed));
    assert!(BalloonSpec::new(auto(Some(false)), MEMORY, true).is_ok());
    assert!(BalloonSpec::new(auto(Some(true)), MEMORY, false).unwrap().unwrap().auto);
}

#[test]
fn a_guest_keeps_a_quarter_of_its_memory_but_a_small_one_more() {
    let floors = [32, 128, 256, 1024].map(|mib| default_floor(Bytes::mib(mib)).as_mib());

    assert_eq!(floors, [32, 64, 64, 256]);
}
