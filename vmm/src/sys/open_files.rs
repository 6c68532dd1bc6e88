//! How many descriptors this process may have.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Asks for so many; how many the process may have then, which can be less or more.
pub(crate) fn raise_limit(wanted: u64) -> u64 {
    let limit = getrlimit(Resource::Nofile);
    let have = limit.current.unwrap_or(u64::MAX);
    let raised = limit.maximum.map_or(wanted, |maximum| maximum.min(wanted));
    let more = Rlimit { current: Some(raised), maximum: limit.maximum };
    if raised > have && setrlimit(Resource::Nofile, more).is_ok() { raised } else { have }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_is_raised_as_far_as_it_may_be_and_never_lowered() {
        let before = getrlimit(Resource::Nofile);
        let have = before.current.unwrap_or(u64::MAX);

        assert_eq!(raise_limit(1), have);
        let raised = raise_limit(have.saturating_add(1));

        assert!(raised >= have);
        assert_eq!(getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX), raised);
        if before.maximum.is_none_or(|maximum| maximum > have) && have < u64::MAX {
            assert_eq!(raised, have + 1);
        }
    }
}
