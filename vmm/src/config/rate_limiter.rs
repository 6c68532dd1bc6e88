//! Limits on what a device does in a time, as Firecracker's configuration describes them.

use serde::{Deserialize, Serialize};

use super::file::section;

/// Firecracker's `RateLimiter`.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct RateLimiterSection {
    /// Bytes.
    #[serde(default, deserialize_with = "section", skip_serializing_if = "Option::is_none")]
    pub bandwidth: Option<TokenBucketSection>,
    /// Operations.
    #[serde(default, deserialize_with = "section", skip_serializing_if = "Option::is_none")]
    pub ops: Option<TokenBucketSection>,
}

/// Firecracker's `TokenBucket`: so many tokens, which come back within a time.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct TokenBucketSection {
    /// How many tokens it holds; 0 is no limit.
    pub size: u64,
    /// Tokens beyond `size` that it holds at first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub one_time_burst: Option<u64>,
    /// Milliseconds in which an empty bucket fills up; 0 is no limit.
    pub refill_time: u64,
}
