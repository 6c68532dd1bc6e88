#![allow(clippy::unwrap_used)]

use super::*;

const MEMORY: Bytes = Bytes::mib(512);

fn with(section: BalloonSection) -> Result<BalloonSpec, TargetError> {
    BalloonSpec::new(BalloonSetting::Section(section), MEMORY).map(Option::unwrap)
}

fn of_mib(mib: u64) -> BalloonSection {
    BalloonSection { amount_mib: Some(mib), ..BalloonSection::default() }
}

#[test]
fn a_vm_has_a_balloon_with_reporting_unless_it_is_told_otherwise() {
    let unsaid = BalloonSpec::new(BalloonSetting::Default, MEMORY).unwrap();
    let empty = with(BalloonSection::default()).unwrap();
    let none = BalloonSpec::new(BalloonSetting::None, MEMORY).unwrap();

    let default = BalloonSpec {
        reporting: true,
        deflate_on_oom: true,
        target: Bytes::ZERO,
        stats_interval_s: 0,
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
        ..BalloonSection::default()
    };

    let spec = with(section.clone()).unwrap();

    assert_eq!(spec.target, Bytes::mib(128));
    assert_eq!((spec.reporting, spec.deflate_on_oom), (false, false));
    assert_eq!(spec.stats_interval_s, 5);
    assert_eq!(spec.to_section(), section);
}

#[test]
fn a_target_is_at_most_the_guests_memory() {
    assert_eq!(with(of_mib(512)).unwrap().target, MEMORY);
    for mib in [513, (1 << 44) - 1, 1 << 44, u64::MAX] {
        let error = with(of_mib(mib)).unwrap_err();
        assert_eq!(error, TargetError { mib, memory: MEMORY });
    }
}
