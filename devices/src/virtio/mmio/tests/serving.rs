//! Notifications, turns and interrupts.

use super::*;
use crate::virtio::testing::RAM;

#[test]
fn a_register_serves_nothing_and_rings_for_it() {
    let mut bench = fresh();
    assert!(bench.negotiate(Features::VERSION_1));
    assert!(bench.set_up(0, 8));
    bench.rings(0).offer(&[ANY]);

    bench.advance(status::DRIVER_OK);
    assert_eq!(bench.doorbells.take(), [0, 1]);
    for queue in [1, 0] {
        bench.write(register::QUEUE_NOTIFY, queue);
    }
    assert_eq!(bench.doorbells.take(), [1, 0]);

    assert_eq!(calls(&mut bench), [Call::Reset, Call::Activate(Features::VERSION_1)]);
    assert_eq!((bench.rings(0).used_index(), bench.line.take()), (0, 0));
}

#[test]
fn a_queue_that_breaks_the_device_is_signalled() {
    let mut bench = fresh();
    assert!(bench.negotiate(Features::VERSION_1));

    assert!(!bench.set_up_at(1, 3, [RAM; 3]));

    assert_eq!(bench.doorbells.take(), [1]);
}

#[test]
fn a_notified_queue_is_served_and_no_other() {
    let mut bench = started(Features::default());
    let head = bench.rings(1).offer(&[ANY]);
    bench.rings(0).offer(&[ANY]);

    bench.kick(1);

    assert_eq!(calls(&mut bench), [Call::Serve(1)]);
    assert_eq!(bench.rings(1).used(), [(head.into(), 0)]);
    assert_eq!(bench.rings(0).used_index(), 0);
    assert_eq!((bench.take_interrupts(), bench.line.take()), (1, 1));
}

#[test]
fn a_notification_of_nothing_interrupts_nobody() {
    for features in [Features::default(), Features::EVENT_IDX] {
        let mut bench = started(features);

        bench.kick(0);

        assert_eq!((bench.take_interrupts(), bench.line.take()), (0, 0));
    }
}

#[test]
fn a_notification_of_a_queue_that_is_not_there_is_ignored() {
    let mut bench = started(Features::default());

    for queue in [2, 3, 0xffff, 0x1_0000, u32::MAX] {
        bench.kick(queue);
    }

    assert_eq!(calls(&mut bench), []);
    assert_eq!(bench.transport.serve(usize::MAX), Served::Done);
    assert!(bench.transport.is_active());
}

#[test]
fn nothing_is_served_before_the_driver_is_ready() {
    let mut bench = fresh();
    bench.kick(0);
    assert!(bench.negotiate(Features::VERSION_1));
    bench.kick(0);
    assert!(bench.set_up(0, 8));
    bench.rings(0).offer(&[ANY]);
    bench.kick(0);

    assert_eq!(calls(&mut bench), [Call::Reset]);
    assert_eq!((bench.rings(0).used_index(), bench.line.take()), (0, 0));
}

#[test]
fn chains_that_came_before_the_driver_was_ready_are_served_when_it_is() {
    let mut bench = fresh();
    assert!(bench.negotiate(Features::VERSION_1));
    assert!(bench.set_up(1, 4));
    let head = bench.rings(1).offer(&[ANY]);
    bench.kick(1);

    bench.start();

    let activate = Call::Activate(Features::VERSION_1);
    assert_eq!(calls(&mut bench), [Call::Reset, activate, Call::Serve(1)]);
    assert_eq!(bench.rings(1).used(), [(head.into(), 0)]);
}

#[test]
fn without_event_indices_the_drivers_flag_keeps_interrupts_back() {
    let mut bench = started(Features::default());
    bench.rings(0).offer(&[ANY]);
    bench.rings(0).set_available_flags(1);

    bench.kick(0);

    assert_eq!(bench.rings(0).used_index(), 1);
    assert_eq!((bench.take_interrupts(), bench.line.take()), (0, 0));
}

#[test]
fn with_event_indices_the_driver_is_interrupted_after_the_chain_it_named() {
    let mut bench = started(Features::EVENT_IDX);
    bench.rings(0).set_used_event(1);
    bench.rings(0).offer(&[ANY]);
    bench.kick(0);
    assert_eq!(bench.line.take(), 0);

    bench.rings(0).offer(&[ANY]);
    bench.kick(0);

    assert_eq!((bench.take_interrupts(), bench.line.take()), (1, 1));
    assert_eq!(bench.rings(0).available_event(), 2);
}

#[test]
fn event_indices_are_used_only_when_they_were_agreed_on() {
    let mut bench = started(Features::default());
    // It would be the event index.
    bench.rings(0).set_used_event(100);
    bench.rings(0).offer(&[ANY]);

    bench.kick(0);

    assert_eq!((bench.line.take(), bench.rings(0).available_event()), (1, 0));
}

#[test]
fn tables_are_followed_with_and_without_the_feature() {
    for features in [Features::default(), Features::INDIRECT_DESC] {
        let mut bench = started(features);
        ANY.put(&bench.memory, DATA, 0);
        let head = bench.rings(0).offer(&[Descriptor::table(DATA, 16)]);

        bench.kick(0);

        assert_eq!(bench.rings(0).used(), [(head.into(), 0)]);
    }
}

#[test]
fn a_driver_that_never_stops_gets_turns() {
    for features in [Features::default(), Features::EVENT_IDX] {
        let mut bench = started(features);
        let available = bench.rings(0).available;
        for _ in 0..8 {
            bench.rings(0).offer(&[ANY]);
        }
        // A later driver's buffers would have other descriptors; these do as well.
        bench.rings(0).set_available_index(1);
        bench.transport.device_mut().endless = Some(available);

        assert_eq!(bench.transport.serve(0), Served::More);
        assert_eq!(bench.rings(0).used_index(), 8);
        assert_eq!(bench.transport.serve(0), Served::More);
        assert_eq!(bench.rings(0).used_index(), 16);

        bench.transport.device_mut().endless = None;
        assert_eq!(bench.transport.serve(0), Served::Done);
        assert_eq!(bench.rings(0).used_flags(), 0);
        assert!(bench.transport.is_active());
    }
}

#[test]
fn between_turns_the_driver_need_not_notify() {
    let mut bench = started(Features::default());
    bench.rings(0).offer(&[ANY]);
    let available = bench.rings(0).available;
    bench.transport.device_mut().endless = Some(available);

    let _ = bench.transport.serve(0);

    assert_eq!(bench.rings(0).used_flags(), 1);
}

#[test]
fn a_full_queue_is_one_turn() {
    let mut bench = started(Features::default());
    for _ in 0..8 {
        bench.rings(0).offer(&[ANY]);
    }

    assert_eq!(bench.transport.serve(0), Served::Done);
    assert_eq!((bench.rings(0).used_index(), bench.rings(0).used_flags()), (8, 0));
}

/// The chain is not the driver's news: serving the queue again and again would be a busy loop.
#[test]
fn a_device_may_leave_chains_where_they_are() {
    for features in [Features::default(), Features::EVENT_IDX] {
        let mut bench = started(features);
        bench.transport.device_mut().idle = true;
        bench.rings(0).offer(&[ANY]);
        bench.kick(0);
        assert_eq!(calls(&mut bench), [Call::Serve(0)]);
        assert_eq!((bench.rings(0).used_index(), bench.line.take()), (0, 0));
        assert_eq!(bench.rings(0).used_flags(), 0);

        bench.transport.device_mut().idle = false;
        bench.transport.notify(0);
        bench.answer();
        assert_eq!((bench.rings(0).used_index(), bench.line.take()), (1, 1));
    }
}

/// The driver has read that it need not notify, so the device must find the chain by itself.
#[test]
fn a_chain_that_comes_in_the_middle_of_a_spurious_turn_is_served() {
    for features in [Features::default(), Features::EVENT_IDX] {
        let mut bench = started(features);
        let head = bench.rings(0).offer(&[ANY]);
        bench.rings(0).set_available_index(0);
        let available = bench.rings(0).available;
        bench.transport.device_mut().late = Some(available);

        bench.kick(0);

        assert_eq!(bench.rings(0).used(), [(head.into(), 0)], "{features:?}");
        assert_eq!((bench.rings(0).used_flags(), bench.line.take()), (0, 1));
    }
}

/// Others get their turn first: a driver may move the index back and forth as often as it is read.
#[test]
fn a_chain_that_comes_after_none_was_found_waits_for_the_next_turn() {
    let mut bench = started(Features::default());
    let available = bench.rings(0).available;
    bench.transport.device_mut().late = Some(available);

    assert_eq!(bench.transport.serve(0), Served::More);
    assert_eq!(calls(&mut bench), [Call::Serve(0)]);
}

#[test]
fn a_broken_device_tells_its_driver_once_and_serves_nothing() {
    let mut bench = started(Features::default());
    bench.rings(0).make_available(8);
    bench.kick(0);
    assert_eq!(bench.transport.broken(), Some(&Broken::Chain));
    assert_eq!((bench.take_interrupts(), bench.line.take()), (2, 1));
    assert_eq!(bench.status() & status::NEEDS_RESET, status::NEEDS_RESET);
    calls(&mut bench);

    bench.rings(1).offer(&[ANY]);
    bench.kick(0);
    bench.kick(1);

    assert_eq!((calls(&mut bench), bench.line.take()), (vec![], 0));
    assert!(!bench.transport.is_active());
}

#[test]
fn only_a_reset_mends_a_broken_device() {
    let mut bench = started(Features::default());
    bench.rings(0).make_available(8);
    bench.kick(0);

    for value in [0x40, 0xf, !0x80, 0x4f] {
        bench.write(register::STATUS, value);
        assert!(bench.transport.broken().is_some());
    }
    bench.reset();

    assert_eq!((bench.status(), bench.transport.broken()), (0, None));
    bench.initialise(Features::VERSION_1);
    let head = bench.rings(0).offer(&[ANY]);
    bench.kick(0);
    assert_eq!(bench.rings(0).used(), [(head.into(), 0)]);
}

#[test]
fn chains_that_are_under_way_at_a_reset_are_not_completed() {
    let mut bench = started(Features::default());
    bench.transport.device_mut().holds = true;
    bench.rings(0).offer(&[ANY]);
    bench.kick(0);
    assert!(bench.transport.device().held.is_some());
    bench.rings(0).offer(&[ANY]);

    bench.reset();
    bench.kick(0);
    assert_eq!(bench.transport.serve(0), Served::Done);

    assert_eq!(bench.rings(0).used_index(), 0);
    assert_eq!((bench.take_interrupts(), bench.line.take()), (0, 0));
}

#[test]
fn a_reset_between_turns_ends_them() {
    let mut bench = started(Features::default());
    bench.rings(0).offer(&[ANY]);
    let available = bench.rings(0).available;
    bench.transport.device_mut().endless = Some(available);
    assert_eq!(bench.transport.serve(0), Served::More);

    bench.reset();

    assert_eq!(bench.transport.serve(0), Served::Done);
    assert_eq!(bench.rings(0).used_index(), 8);
}

#[test]
fn a_queue_that_writes_over_itself_does_no_harm() {
    // Table, available and used ring in the same place.
    let mut bench = fresh();
    assert!(bench.negotiate(Features::VERSION_1));
    assert!(bench.set_up_at(0, 8, [RAM; 3]));
    bench.memory.write_obj(1_u16, GuestAddress(RAM + 2)).unwrap();
    bench.start();

    for _ in 0..100 {
        bench.kick(0);
    }
}

#[test]
fn a_part_leaves_notifications_off_until_one_finds_nothing() {
    let mut bench = started(Features::default());
    bench.rings(0).offer(&[ANY]);

    assert_eq!(bench.transport.serve_part(0), Served::More);
    assert_eq!((bench.rings(0).used_index(), bench.rings(0).used_flags()), (1, 1));

    bench.rings(0).offer(&[ANY]);
    assert_eq!(bench.transport.serve_part(0), Served::More);
    assert_eq!(bench.transport.serve_part(0), Served::Done);
    assert_eq!((bench.rings(0).used_index(), bench.rings(0).used_flags()), (2, 0));
}

#[test]
fn a_part_sees_a_chain_that_came_while_it_found_nothing() {
    let mut bench = started(Features::default());
    let available = bench.rings(0).available;
    bench.transport.device_mut().late = Some(available);

    assert_eq!(bench.transport.serve_part(0), Served::More);
    assert_eq!(bench.rings(0).used_flags(), 1);
}

#[test]
fn a_part_that_takes_nothing_on_purpose_waits_for_the_device() {
    let mut bench = started(Features::default());
    bench.transport.device_mut().idle = true;
    bench.rings(0).offer(&[ANY]);

    assert_eq!(bench.transport.serve_part(0), Served::Done);
}

/// Completes a chain in a quiet turn.
fn serve_quietly(bench: &mut Bench<Probe>) {
    bench.rings(0).offer(&[ANY]);
    let done = bench.transport.with_queue_quietly(0, |_, ring| {
        let head = ring.take()?.unwrap().head();
        ring.complete(head, 0)
    });
    assert_eq!(done, Some(()));
}

#[test]
fn quiet_turns_are_interrupted_for_together() {
    for features in [Features::default(), Features::EVENT_IDX] {
        let mut bench = started(features);
        serve_quietly(&mut bench);
        serve_quietly(&mut bench);
        assert_eq!((bench.rings(0).used_index(), bench.line.take()), (2, 0));

        bench.transport.interrupt_for(0);
        bench.transport.interrupt_for(0);

        assert_eq!((bench.take_interrupts(), bench.line.take()), (1, 1), "{features:?}");
    }
}

#[test]
fn a_turn_that_is_not_quiet_interrupts_for_those_before_it() {
    let mut bench = started(Features::EVENT_IDX);
    serve_quietly(&mut bench);
    serve_quietly(&mut bench);
    // The driver wants an interrupt for the first of them, and takes none for the others.
    bench.rings(0).set_used_event(0);

    bench.kick(0);

    assert_eq!((bench.take_interrupts(), bench.line.take()), (1, 1));
}

#[test]
fn a_driver_that_breaks_the_device_in_a_quiet_turn_is_interrupted_for_what_was_done() {
    let mut bench = started(Features::default());
    serve_quietly(&mut bench);

    let broken: Option<()> = bench.transport.with_queue_quietly(0, |_, _| Err(Broken::Available));

    assert_eq!((broken, bench.take_interrupts()), (None, 3));
}
