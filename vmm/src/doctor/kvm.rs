//! What KVM offers on this host.

use arch::gic::Gic;

use super::Check;
use crate::kvm::{Error, Host};

pub(super) fn checks() -> Vec<Check> {
    let host = match Host::open() {
        Ok(host) => host,
        Err(error) => return vec![not_usable(&error)],
    };
    let mut checks = vec![Check::ok("KVM", "/dev/kvm is usable"), mte(&host), gic(&host)];
    checks.push(Check::ok(
        "guest size",
        format!(
            "up to {} vCPUs and {} of memory ({}-bit addresses)",
            host.max_cpus(),
            arch::layout::max_memory(host.ipa_bits()),
            host.ipa_bits()
        ),
    ));
    let yes_no = |yes| if yes { "yes" } else { "no" };
    checks.push(Check::ok(
        "CPU features",
        format!(
            "SVE {}, pointer authentication {}",
            yes_no(host.has_sve()),
            yes_no(host.has_pointer_authentication())
        ),
    ));
    checks
}

fn not_usable(error: &Error) -> Check {
    match error {
        Error::Open { hint, source } => Check::fail("KVM", format!("/dev/kvm: {source}"), *hint),
        other => Check::fail("KVM", "/dev/kvm is not usable", other.to_string()),
    }
}

fn mte(host: &Host) -> Check {
    match host.mte() {
        Ok(()) => Check::ok("MTE", "guests can have it"),
        Err(why) => Check::warn("MTE", "guests cannot have it", why),
    }
}

fn gic(host: &Host) -> Check {
    match host.gic() {
        Ok(gic @ Gic::V3 { .. }) => Check::ok("GIC", format!("guests get a {gic}")),
        Ok(gic @ Gic::V2) => Check::warn(
            "GIC",
            format!("guests get a {gic}"),
            format!("this host has no GICv3, so a guest has at most {} vCPUs", gic.max_cpus()),
        ),
        Err(error) => Check::fail("GIC", "none for guests", error.to_string()),
    }
}
