//! What the rooms behind the VM return, as the bodies and faults of the API. Those rooms know neither.

use super::ControlError;
use crate::memory::footprint;

impl From<footprint::Error> for ControlError {
    fn from(error: footprint::Error) -> Self {
        const ACTION: &str = "measure the footprint";
        match error {
            footprint::Error::Torn { .. } | footprint::Error::Counting => {
                Self::unavailable(ACTION, error)
            }
            _ => Self::failed(ACTION, error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_footprint_that_can_be_had_later_is_unavailable() {
        for (error, for_now) in [
            (footprint::Error::Counting, true),
            (footprint::Error::Torn { tries: 8 }, true),
            (footprint::Error::NoTags, false),
            (footprint::Error::Smaps(std::io::ErrorKind::NotFound.into()), false),
        ] {
            let text = error.to_string();

            let fault = ControlError::from(error);

            assert_eq!(matches!(fault, ControlError::Unavailable { .. }), for_now, "{text}");
            assert_eq!(matches!(fault, ControlError::Failed { .. }), !for_now, "{text}");
        }
    }
}
