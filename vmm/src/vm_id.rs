//! The id of a VM: what `--id` takes, and the name of its entry in the registry.

/// The longest id: Firecracker's bound, so that an id fits a file name and a log line.
const LONGEST: usize = 64;

/// The rule, for messages.
pub(crate) const RULE: &str = "1 to 64 letters, digits and hyphens";

/// Whether this may be the id of a VM. No id has a dot, as `pid.42` has, or is a path.
pub(crate) fn is_vm_id(text: &str) -> bool {
    (1..=LONGEST).contains(&text.len())
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rule_has_the_bound() {
        assert!(RULE.contains(&LONGEST.to_string()));
    }

    #[test]
    fn an_id_is_letters_digits_and_hyphens() {
        for id in ["a", "vm-1", "-", "0", &"x".repeat(64)] {
            assert!(is_vm_id(id), "{id}");
        }
        for other in ["", ".", "..", "a/b", "a.b", "a_b", "a b", "\u{e4}", "a\n", &"x".repeat(65)] {
            assert!(!is_vm_id(other), "{other:?}");
        }
    }
}
