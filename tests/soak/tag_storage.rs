//! Tag storage on demand beside what the host's kernel counts, often.

use std::time::Duration;

use testing::lab::Lab;
use testing::tag_samples::never_above_reserved;

const LIMIT: Duration = Duration::from_secs(10_000);

/// What the guest has between two looks, on a host that counts instructions: ten million, however busy the machine is.
const BETWEEN: Duration = Duration::from_millis(10);

#[test]
fn tagged_pages_at_ten_thousand_samples() {
    let host = Lab::new().as_root().counting_instructions().timeout(LIMIT);
    host.run(|| never_above_reserved(10_000, BETWEEN));
}
