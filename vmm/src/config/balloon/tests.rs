#![allow(clippy::unwrap_used)]

use proptest::option;
use proptest::prelude::*;

use super::*;

fn complaint(text: &str) -> ParseBalloonError {
    text.parse::<BalloonFlag>().expect_err(text)
}

#[test]
fn each_key_is_optional() {
    assert_eq!("".parse(), Ok(BalloonFlag::default()));
    for (text, expected) in [
        ("reporting=off", BalloonFlag { reporting: Some(false), ..Default::default() }),
        ("deflate-on-oom=on", BalloonFlag { deflate_on_oom: Some(true), ..Default::default() }),
        ("target=1G", BalloonFlag { target: Some(1024), ..Default::default() }),
        ("stats=65535", BalloonFlag { stats_interval_s: Some(65535), ..Default::default() }),
        ("auto", BalloonFlag { auto: Some(true), ..Default::default() }),
        ("auto=off", BalloonFlag { auto: Some(false), ..Default::default() }),
        ("floor=64M", BalloonFlag { floor: Some(64), ..Default::default() }),
    ] {
        assert_eq!(text.parse(), Ok(expected), "{text}");
    }
}

#[test]
fn what_is_wrong_is_named() {
    for text in
        ["reporting", "floor", "size=1", "target", ",", "stats=1,", "Reporting=on", " reporting=on"]
    {
        assert!(matches!(complaint(text), ParseBalloonError::Key(_)), "{text:?}");
    }
    assert_eq!(complaint("stats=1,target=0,stats=1"), ParseBalloonError::Twice("stats"));
    assert_eq!(complaint("auto,auto=off"), ParseBalloonError::Twice("auto"));
    for text in ["reporting=", "reporting=true", "deflate-on-oom=1", "reporting=ON", "auto="] {
        assert!(matches!(complaint(text), ParseBalloonError::Switch { .. }), "{text:?}");
    }
    for text in ["target=", "target=much", "target=-1", "floor=1.5G", "target=99999999999G"] {
        assert!(matches!(complaint(text), ParseBalloonError::Size { .. }), "{text:?}");
    }
    for text in ["target=4K", "floor=1", "target=1025K"] {
        assert!(matches!(complaint(text), ParseBalloonError::Mib { .. }), "{text:?}");
    }
    for text in ["stats=", "stats=-1", "stats=65536", "stats=1s", "stats=0.5"] {
        assert!(matches!(complaint(text), ParseBalloonError::Stats(_)), "{text:?}");
    }
}

proptest! {
    #[test]
    fn the_order_of_the_keys_does_not_matter(
        reporting in option::of(any::<bool>()),
        deflate_on_oom in option::of(any::<bool>()),
        target in option::of(0..1_u64 << 44),
        stats_interval_s in option::of(any::<u16>()),
        auto in option::of(any::<bool>()),
        floor in option::of(0..1_u64 << 44),
        turn in 0usize..6,
    ) {
        let on = |yes| if yes { "on" } else { "off" };
        let mut items: Vec<String> = [
            reporting.map(|yes| format!("reporting={}", on(yes))),
            deflate_on_oom.map(|yes| format!("deflate-on-oom={}", on(yes))),
            target.map(|mib| format!("target={mib}M")),
            stats_interval_s.map(|seconds| format!("stats={seconds}")),
            auto.map(|yes| format!("auto={}", on(yes))),
            floor.map(|mib| format!("floor={mib}M")),
        ]
        .into_iter()
        .flatten()
        .collect();
        let turn = turn.min(items.len());
        items.rotate_left(turn);

        let flag = items.join(",").parse();

        let expected =
            BalloonFlag { reporting, deflate_on_oom, target, stats_interval_s, auto, floor };
        prop_assert_eq!(flag, Ok(expected));
    }

    #[test]
    fn no_text_panics_the_parser(text in "[a-z=,0-9-]{0,60}|.{0,60}") {
        let _ = text.parse::<BalloonFlag>();
    }
}
