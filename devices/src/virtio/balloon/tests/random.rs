//! Nothing that a driver does panics, and the figures stay true.

use proptest::prelude::*;

use super::*;

#[derive(Clone, Debug)]
enum Step {
    Send(usize, Vec<Part>),
    Raw(usize, Vec<(Part, u16)>, u16),
    Config(u64, Vec<u8>),
    Target(u64),
    Switch(bool),
    Ask,
    Restart(u64),
}

fn address() -> impl Strategy<Value = u64> {
    let end = ranges::end(RAM);
    prop_oneof![
        6 => (DATA..DATA + 0x8000).prop_map(|address| address & !3),
        2 => RAM.start.0..end,
        1 => end - 64..end + 64,
        1 => any::<u64>(),
        1 => u64::MAX - 64..=u64::MAX,
    ]
}

fn length() -> impl Strategy<Value = u32> {
    prop_oneof![
        6 => (0_u32..300).prop_map(|words| words * 4),
        2 => 0_u32..5000,
        1 => any::<u32>(),
        1 => Just(u32::MAX),
    ]
}

fn part() -> impl Strategy<Value = Part> {
    let flags = prop_oneof![8 => Just(0), 3 => Just(WRITE), 1 => Just(INDIRECT), 1 => 0_u16..8];
    (address(), length(), flags)
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        10 => (0_usize..4, prop::collection::vec(part(), 1..6))
            .prop_map(|(queue, parts)| Step::Send(queue, parts)),
        2 => (0_usize..4, prop::collection::vec((part(), any::<u16>()), 1..6), any::<u16>())
            .prop_map(|(queue, raw, head)| Step::Raw(queue, raw, head % 8)),
        2 => (prop_oneof![0_u64..20, any::<u64>()], prop::collection::vec(any::<u8>(), 0..20))
            .prop_map(|(offset, data)| Step::Config(offset, data)),
        1 => any::<u64>().prop_map(Step::Target),
        1 => any::<bool>().prop_map(Step::Switch),
        2 => Just(Step::Ask),
        1 => any::<u64>().prop_map(Step::Restart),
    ]
}

/// Does a step. What breaks the device is mended as a driver would.
fn act(bench: &mut Bench, step: Step) {
    let served = match step {
        Step::Send(queue, parts) => bench.send(queue, &parts),
        Step::Raw(queue, raw, head) => {
            for (slot, (part, next)) in (0_u64..).zip(raw) {
                bench.descriptor(queue_base(queue) + 16 * slot, part, next % 160);
            }
            bench.offer(queue, head);
            bench.serve(queue)
        }
        Step::Config(offset, data) => {
            let due = bench.balloon.write_config(offset, &data);
            bench.balloon.read_config(offset, &mut vec![0; data.len()]);
            due.map_or(Ok(()), |queue| bench.serve(queue))
        }
        Step::Target(bytes) => {
            bench.balloon.set_target(bytes);
            Ok(())
        }
        Step::Switch(on) => {
            bench.balloon.set_reporting(on);
            Ok(())
        }
        Step::Ask => {
            bench.balloon.request_statistics();
            bench.serve(STATISTICS)
        }
        Step::Restart(acked) => {
            bench.restart(Features(acked));
            Ok(())
        }
    };
    if served.is_err() {
        bench.restart(bench.balloon.features());
    }
}

fn check(bench: &Bench) -> Result<(), TestCaseError> {
    let counted = |counter: fn(&Counters) -> &AtomicU64| bench.counter(counter);
    let given_back = counted(|counters| &counters.discarded);
    let from_reports = counted(|counters| &counters.reported)
        - counted(|counters| &counters.poison_skipped)
        - counted(|counters| &counters.kept);
    prop_assert_eq!(bench.inflated(), bench.balloon.pages.bytes());
    prop_assert!(bench.inflated() <= RAM.length);
    prop_assert!(bench.balloon.target() <= RAM.length);
    let calls = bench.calls.lock().unwrap();
    let asked: u64 = calls.iter().map(|call| call.range.length).sum();
    prop_assert!(given_back <= asked && from_reports <= asked);
    for call in calls.iter() {
        prop_assert_eq!(ranges::clip(call.range, RAM), Some(call.range));
    }
    Ok(())
}

proptest! {
    #[test]
    fn nothing_panics_and_figures_agree(
        steps in prop::collection::vec(step(), 1..60),
        seed in prop::collection::vec(0_u32..3000, 2000),
        order in prop::sample::select(vec![0_u32, 2, 4, 9]),
    ) {
        let mut bench = Bench::with(EVERYTHING, PAGE << order);
        let pages: Vec<u8> =
            seed.into_iter().flat_map(|page| (FIRST - 100 + page).to_le_bytes()).collect();
        bench.store(DATA, &pages);
        for step in steps {
            act(&mut bench, step);
            check(&bench)?;
        }
    }
}
