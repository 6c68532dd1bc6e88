//! The random numbers that the host gives its guest.

use testing::guest::Plan;
use testing::lab::Lab;

#[test]
fn a_guest_reads_random_numbers_where_it_was_given_them() {
    Lab::new().run(|| {
        let finished = Plan::workload("hwrng").flag("--rng").run().expect_power_off();

        let random = finished.report("random");
        assert!(random["source"].as_str().unwrap().starts_with("virtio_rng"), "{random}");
        assert_eq!(random["bytes"], 8192, "{random}");
        assert_eq!(random["repeats"], false, "{random}");
        // Of 4096 random bytes, 256 values: to miss more than a few is beyond chance.
        assert!(random["distinct"].as_u64().unwrap() > 250, "{random}");

        let finished = Plan::workload("hwrng").run();

        let error = finished.report("error");
        assert!(error["message"].as_str().unwrap().contains("/dev/hwrng"), "{error}");
    });
}
