//! The alarm of the guest's real-time clock.

use testing::guest::Plan;
use testing::lab::Lab;

#[test]
fn an_alarm_interrupts_the_guest_once() {
    Lab::new().run(|| {
        // The VMM reports a balloon whose driver is slow to start, and a busy host makes it slow.
        let plan = Plan::workload("alarm,2").with("--cpus", "2").flag("--no-balloon");

        let finished = plan.run().expect_power_off();

        let alarm = finished.report("alarm");
        assert_eq!(alarm["gone_off"], true, "{alarm}");
        // The clock counts whole seconds, and the first is one that has begun.
        assert!(alarm["waited_ns"].as_u64().unwrap() > 900_000_000, "{alarm}");
        assert_eq!(alarm["interrupts"], 1, "{alarm}");
        assert_eq!(finished.messages, "");
    });
}
