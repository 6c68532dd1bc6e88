//! The tables of the balloon.
#![allow(clippy::unwrap_used)]

use proptest::prelude::*;
use vmm::api::model::{AutoBalloon, DriverState, GuestStats, Reporting, ReportingState};
use vmm::backends::reporting::Diagnosis;

use super::*;

fn lines(text: &str) -> Vec<&str> {
    text.lines().collect()
}

#[test]
fn a_balloon_is_a_table_of_its_state() {
    let state = Balloon {
        amount_mib: 256,
        needed_mib: 0,
        actual_mib: 128,
        deflate_on_oom: true,
        stats_polling_interval_s: 90,
        free_page_hinting: false,
        free_page_reporting: true,
        driver: DriverState::NeedsReset,
        reporting: Reporting::from(None),
        auto: AutoBalloon {
            on: true,
            floor_mib: 64,
            state: Some("taking".to_owned()),
            reason: Some("host_short".to_owned()),
        },
    };

    let expected = [
        "Target          256 MiB",
        "In the balloon  128 MiB",
        "Driver          needs reset",
        "Reporting       on",
        "Deflate on OOM  yes",
        "Auto            taking: host_short; 64 MiB stay",
        "Statistics      every 1 min 30 s",
    ];
    assert_eq!(lines(&balloon(&state)), expected);
}

#[test]
fn reporting_that_gives_nothing_says_why() {
    let state = Balloon {
        amount_mib: 0,
        needed_mib: 0,
        actual_mib: 0,
        deflate_on_oom: false,
        stats_polling_interval_s: 0,
        free_page_hinting: false,
        free_page_reporting: true,
        driver: DriverState::Absent,
        reporting: Reporting::from(Some(Diagnosis::NoDriver)),
        auto: AutoBalloon::default(),
    };

    let text = balloon(&state);

    assert_eq!(state.reporting.state, ReportingState::Ineffective);
    assert!(text.contains("ineffective: the guest has not started a balloon driver"), "{text}");
    assert!(
        text.contains("Statistics      off\n") && text.contains("Auto            off\n"),
        "{text}"
    );
}

#[test]
fn statistics_are_those_that_the_guest_gave() {
    let guest = GuestStats {
        free_memory: Some(3 << 29),
        minor_faults: Some(1_234_567),
        async_scan: Some(3 << 20),
        ..GuestStats::default()
    };
    let given =
        BalloonStats { target_pages: 2048, actual_pages: 1, target_mib: 8, actual_mib: 0, guest };

    let expected = [
        "Target                 8 MiB",
        "In the balloon         4 KiB",
        "Free memory          1.5 GiB",
        "Minor faults       1,234,567",
        "Scanned by kswapd      3 MiB",
    ];
    assert_eq!(lines(&statistics(&given)), expected);
}

#[test]
fn statistics_before_the_first_answer_say_so() {
    let text = statistics(&BalloonStats::default());

    assert!(text.ends_with("The guest has not answered yet.\n"), "{text}");
}

#[test]
fn a_footprint_has_sizes_exact_bytes_and_shares() {
    let figures = Footprint {
        guest_bytes: 1 << 30,
        resident_bytes: 256 << 20,
        huge_bytes: 1,
        swapped_bytes: Some(64 << 20),
        count_us: 12_034,
        tagged_unavailable: Some("only root may read /proc/kpageflags".to_owned()),
        reported_bytes: 3 << 30,
        failed_bytes: 1,
        failed_reason: Some("Invalid argument (os error 22)".to_owned()),
        ..Footprint::default()
    };

    let expected = [
        "Guest memory           1 GiB  1,073,741,824 B  [####################] 100 %",
        "Resident             256 MiB    268,435,456 B  [#####---------------]  25 %",
        "In huge pages            1 B              1 B  [#-------------------]   0 %",
        "Swapped out           64 MiB     67,108,864 B  [#-------------------]   6 %",
        "Tagged                     -                   only root may read /proc/kpageflags",
        "In the balloon           0 B              0 B  [--------------------]   0 %",
        "Counted in 12.034 ms.",
        "Since the start:",
        "Reported               3 GiB  3,221,225,472 B",
        "Given back               0 B              0 B",
        "Refused by the host      1 B              1 B  Invalid argument (os error 22)",
        "Kept for its poison      0 B              0 B",
        "Kept, switched off       0 B              0 B",
    ];
    assert_eq!(lines(&footprint(&figures)), expected);
    // A clone has one line more.
    let clone = Footprint { template_bytes: Some(128 << 20), ..figures };
    let line = "Of the template      128 MiB    134,217,728 B  [##------------------]  12 %";
    assert_eq!(lines(&footprint(&clone))[3], line);
}

proptest! {
    #[test]
    fn no_figures_break_a_table(
        guest_bytes: u64, resident_bytes: u64, tagged_bytes: Option<u64>, pages: u64,
    ) {
        let figures =
            Footprint { guest_bytes, resident_bytes, tagged_bytes, ..Footprint::default() };
        prop_assert_eq!(footprint(&figures).lines().count(), 12);
        let stats = BalloonStats { target_pages: pages, ..BalloonStats::default() };
        prop_assert!(!statistics(&stats).is_empty());
    }

    #[test]
    fn a_bar_has_one_width(part: u64, whole in 1u64..) {
        prop_assert_eq!(bar(part, whole).len(), bar(0, 1).len());
    }
}
