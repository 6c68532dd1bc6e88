#![allow(clippy::unwrap_used)]

use proptest::prelude::*;

use super::*;

const PAGES: [Bytes; 3] = [Bytes::kib(4), Bytes::kib(16), Bytes::kib(64)];
const PAGE: Bytes = PAGES[0];

#[test]
fn small_guests_report_in_small_units() {
    for (mib, guest_page, expected) in [
        (64, PAGES[0], Some(5)),
        (128, PAGES[0], Some(6)),
        (256, PAGES[0], Some(7)),
        (510, PAGES[0], Some(7)),
        (512, PAGES[0], None),
        (4096, PAGES[0], None),
        (64, PAGES[1], Some(3)),
        (512, PAGES[1], Some(7)),
        (4096, PAGES[1], Some(7)),
        (64, PAGES[2], Some(1)),
        (512, PAGES[2], None),
    ] {
        let order = order(Bytes::mib(mib), guest_page, PAGE);
        assert_eq!(order, expected, "{mib} MiB, pages of {guest_page}");
    }
}

#[test]
fn the_pages_of_guest_memory_bound_the_unit_from_below() {
    let memory = Bytes::mib(64);

    assert_eq!(order(memory, PAGE, Bytes::mib(2)), None, "2 MiB is Linux's own choice");
    assert_eq!(order(Bytes::mib(64), PAGES[1], Bytes::mib(2)), Some(7));
    assert_eq!(order(Bytes::mib(1), PAGE, Bytes::kib(64)), Some(4));
    assert_eq!(order(memory, PAGE, Bytes::gib(1)), None, "the guest cannot report as much");
}

#[test]
fn linuxs_default_is_that_of_its_page_size() {
    assert_eq!(PAGES.map(default_order), [9, 11, 5]);
    assert_eq!(PAGES.map(|page| unit(default_order(page), page)), [2, 32, 2].map(Bytes::mib));
    assert_eq!(batch(9, PAGE), Bytes::mib(64));
}

#[test]
fn an_order_on_the_command_line_is_found_as_linux_finds_it() {
    for (line, expected) in [
        ("", None),
        ("quiet", None),
        ("page_reporting.page_reporting_order=7", Some(7)),
        ("quiet page_reporting.page_reporting_order=0 ro", Some(0)),
        ("page-reporting.page-reporting-order=7", Some(7)),
        ("page_reporting.page_reporting_order=0x9", Some(9)),
        ("page_reporting.page_reporting_order=011", Some(9)),
        ("page_reporting.page_reporting_order=+5", Some(5)),
        ("page_reporting.page_reporting_order=\"5\"", Some(5)),
        ("\"page_reporting.page_reporting_order=5\"", Some(5)),
        ("page_reporting.page_reporting_order=5 page_reporting.page_reporting_order=6", Some(6)),
        ("page_reporting.page_reporting_order=5 page_reporting.page_reporting_order=14", Some(5)),
        ("page_reporting.page_reporting_order", None),
        ("page_reporting.page_reporting_order=", None),
        ("page_reporting.page_reporting_order=-1", None),
        ("page_reporting.page_reporting_order=++1", None),
        ("page_reporting.page_reporting_order=08", None),
        ("page_reporting.page_reporting_order=99999999999", None),
        ("page_reporting_order=5", None),
        ("-- page_reporting.page_reporting_order=5", None),
        ("a=\"b page_reporting.page_reporting_order=5\"", None),
    ] {
        assert_eq!(given(line), expected, "{line}");
    }
}

#[test]
fn the_order_in_effect_is_one_that_the_guest_takes() {
    let line = "page_reporting.page_reporting_order=4 page_reporting.page_reporting_order=12";

    assert_eq!(PAGES.map(|page| in_effect(line, page)), [4, 4, 12]);
    assert_eq!(PAGES.map(|page| in_effect("quiet", page)), [9, 11, 5]);
}

#[test]
fn an_order_is_put_before_what_it_must_not_replace() {
    let line = with_order("panic=-1 quiet -- x", 8);

    assert_eq!(line, "page_reporting.page_reporting_order=8 panic=-1 quiet -- x");
    assert_eq!(given(&line), Some(8));
    assert_eq!(with_order("", 8), "page_reporting.page_reporting_order=8");
}

#[test]
fn a_small_guest_is_told_its_order_and_so_is_its_user() {
    let (line, note) = prepare("quiet", Bytes::mib(256), PAGE, PAGE);

    assert_eq!(line, "page_reporting.page_reporting_order=7 quiet");
    assert!(note.unwrap().contains("a guest of 256 MiB"));
}

#[test]
fn a_guest_that_needs_no_order_keeps_its_command_line() {
    let own = "page_reporting.page_reporting_order=3";
    for (line, mib) in [("quiet", 512), (own, 64)] {
        assert_eq!(prepare(line, Bytes::mib(mib), PAGE, PAGE), (line.to_owned(), None));
    }
}

#[test]
fn an_order_that_does_not_fit_is_left_out_and_its_user_told_what_to_do() {
    let room = MAX_COMMAND_LINE - with_order("x", 8).len() + 1;
    let prepared = |length| {
        let line = "x".repeat(length);
        let (prepared, note) = prepare(&line, Bytes::mib(256), PAGE, PAGE);
        (prepared == line, note.unwrap())
    };

    assert!(!prepared(room).0);
    let (unchanged, note) = prepared(room + 3);
    assert!(unchanged && note.contains("shorten it by 3 characters"), "{note}");
}

fn page() -> impl Strategy<Value = Bytes> {
    prop::sample::select(PAGES.to_vec())
}

fn granularity() -> impl Strategy<Value = Bytes> {
    prop::sample::select([&PAGES[..], &[Bytes::mib(2), Bytes::mib(32)]].concat())
}

proptest! {
    #[test]
    fn the_unit_is_the_largest_that_keeps_the_rules(
        chunks in 32u64..1 << 20, guest_page in page(), granularity in granularity(),
    ) {
        let memory = Bytes::mib(2 * chunks);
        let Some(best) = best(memory, guest_page, granularity) else {
            let largest = unit(largest_order(guest_page), guest_page);
            prop_assert!(largest < granularity, "the guest could report {}", largest);
            return Ok(());
        };
        let size = unit(best, guest_page);
        let share = if memory < Bytes::mib(512) { 16 } else { 8 };
        let fits = |order: u8| {
            unit(order, guest_page) <= Bytes::mib(2)
                && batch(order, guest_page).get() <= memory.get() / share
        };

        prop_assert!(size >= granularity);
        prop_assert!(best <= largest_order(guest_page));
        // Smaller units, where there are any, would hold no whole page.
        prop_assert!(
            fits(best) || best == 0 || unit(best - 1, guest_page) < granularity,
            "order {}", best
        );
        prop_assert!(!fits(best + 1), "order {} would do", best + 1);
        let found = order(memory, guest_page, granularity).unwrap_or(default_order(guest_page));
        prop_assert_eq!(found, best);
    }

    #[test]
    fn more_memory_never_means_a_smaller_unit(
        chunks in 0u64..1 << 20, more in 0u64..1 << 20, guest_page in page(),
        granularity in granularity(),
    ) {
        let best = |chunks: u64| best(Bytes::mib(2 * chunks), guest_page, granularity);
        prop_assert!(best(chunks) <= best(chunks + more));
    }

    #[test]
    fn any_size_has_an_answer(memory: u64, guest_page: u64, granularity: u64, order: u8) {
        let [memory, guest_page, granularity] = [memory, guest_page, granularity].map(Bytes::new);
        let _ = super::order(memory, guest_page, granularity);
        prop_assert!(batch(order, guest_page) > unit(order, guest_page));
    }

    #[test]
    fn what_is_put_on_a_command_line_is_found_unless_the_user_chose(
        line in "[a-z]{0,8}( page_reporting.page_reporting_order=1[0-9])?( -- y)?", order in 0u8..=13,
    ) {
        let user = given(&line);
        let line = with_order(&line, order);
        prop_assert_eq!(given(&line), Some(user.unwrap_or(order)));
    }

    #[test]
    fn no_command_line_panics_the_search(line in "[-a-z_.=\" 0-9]{0,80}|.{0,80}") {
        let _ = given(&line);
        let _ = in_effect(&line, PAGE);
    }
}

/// A guest of 512 MiB in which everything is as it should be.
const CONFIG: ReportingConfig = ReportingConfig {
    wanted: true,
    locked: false,
    memory: Bytes::mib(512),
    guest_page: PAGE,
    order: 9,
    granularity: PAGE,
};

const RUNNING: Running =
    Running { on: true, driver: DriverState::Active, acknowledged: true, poison: None };

#[test]
fn a_guest_that_reports_has_no_diagnosis() {
    assert_eq!(forecast(&CONFIG), None);
    for poison in [None, Some(0)] {
        assert_eq!(diagnosis(&CONFIG, &Running { poison, ..RUNNING }), None);
    }
}

#[test]
fn what_is_settled_at_the_start_is_known_before_the_guest_runs() {
    for (config, expected) in [
        (ReportingConfig { locked: true, wanted: false, ..CONFIG }, Diagnosis::Locked),
        (ReportingConfig { locked: true, ..CONFIG }, Diagnosis::Locked),
        (ReportingConfig { wanted: false, ..CONFIG }, Diagnosis::NotOffered),
    ] {
        assert!(!config.offered());
        assert_eq!(forecast(&config), Some(expected));
        let running = Running { on: false, acknowledged: false, ..RUNNING };
        assert_eq!(diagnosis(&config, &running), Some(expected));
        assert!(expected.is_choice());
    }
}

#[test]
fn the_reason_to_act_on_first_is_told() {
    let mut running = Running {
        on: false,
        driver: DriverState::NeedsReset,
        acknowledged: false,
        poison: Some(0xaaaa_aaaa),
    };
    let config = ReportingConfig { memory: Bytes::mib(64), ..CONFIG };
    let found = |running: &Running| diagnosis(&config, running);

    assert_eq!(found(&running), Some(Diagnosis::SwitchedOff));
    running.on = true;
    assert_eq!(found(&running), Some(Diagnosis::NeedsReset));
    running.driver = DriverState::Absent;
    assert_eq!(found(&running), Some(Diagnosis::NoDriver));
    running.driver = DriverState::Active;
    assert_eq!(found(&running), Some(Diagnosis::LeftOut));
    running.acknowledged = true;
    assert_eq!(found(&running), Some(Diagnosis::Poison { value: 0xaaaa_aaaa }));
    running.poison = Some(0);
    assert!(matches!(found(&running), Some(Diagnosis::OrderTooHigh { better: Some(5), .. })));
}

#[test]
fn a_unit_below_the_pages_of_guest_memory_is_reported_with_the_way_out() {
    let config = ReportingConfig { order: 3, granularity: Bytes::kib(64), ..CONFIG };
    let hopeless = ReportingConfig { granularity: Bytes::gib(1), ..CONFIG };

    let text = forecast(&config).unwrap().to_string();
    let way_out = forecast(&hopeless).unwrap().to_string();

    assert!(text.contains("units of 32 KiB, less than the 64 KiB pages"), "{text}");
    assert!(text.ends_with("put page_reporting.page_reporting_order=9 on its command line"));
    assert!(way_out.contains("--memory-backing"), "{way_out}");
}

#[test]
fn an_order_that_hardly_ever_finds_a_batch_free_is_reported_with_the_way_out() {
    let found =
        |mib, order| forecast(&ReportingConfig { memory: Bytes::mib(mib), order, ..CONFIG });
    let text = found(128, 9).unwrap().to_string();
    let hugetlbfs =
        ReportingConfig { memory: Bytes::mib(64), granularity: Bytes::mib(2), ..CONFIG };
    let way_out = forecast(&hugetlbfs).unwrap().to_string();

    assert!(text.contains("only while 64 MiB of its 128 MiB is free"), "{text}");
    assert!(text.ends_with("page_reporting_order=6 on its command line"), "{text}");
    assert_eq!(found(130, 9), None);
    assert!(way_out.ends_with("give it more --memory"), "{way_out}");
}

proptest! {
    #[test]
    fn the_order_that_is_chosen_is_never_diagnosed(
        chunks in 32u64..1 << 20, guest_page in page(),
        granularity in prop::sample::select(PAGES.to_vec()),
    ) {
        let memory = Bytes::mib(2 * chunks);
        let chosen = order(memory, guest_page, granularity);
        let order = chosen.unwrap_or(default_order(guest_page));
        let config = ReportingConfig { memory, guest_page, order, granularity, ..CONFIG };
        prop_assert_eq!(forecast(&config), None);
    }

    #[test]
    fn an_order_that_is_advised_helps(
        chunks in 32u64..1 << 12, guest_page in page(), order in 0u8..=13,
        granularity in prop::sample::select(PAGES.to_vec()),
    ) {
        let memory = Bytes::mib(2 * chunks);
        let config = ReportingConfig { memory, guest_page, order, granularity, ..CONFIG };
        let better = match forecast(&config) {
            Some(Diagnosis::UnitBelowPage { better, .. } | Diagnosis::OrderTooHigh { better, .. }) => {
                better.unwrap()
            }
            None => return Ok(()),
            Some(other) => panic!("{other:?}"),
        };
        prop_assert_eq!(forecast(&ReportingConfig { order: better, ..config }), None);
    }
}
