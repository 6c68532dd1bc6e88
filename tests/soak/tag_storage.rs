//! Tag storage on demand beside what the host's kernel counts, often.

use std::time::Duration;

use testing::lab::Lab;
use testing::tag_samples::never_above_reserved;

const LIMIT: Duration = Duration::from_secs(3600);

#[test]
fn tagged_pages_at_ten_thousand_samples() {
    Lab::new().as_root().timeout(LIMIT).run(|| never_above_reserved(10_000));
}
