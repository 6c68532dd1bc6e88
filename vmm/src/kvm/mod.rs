//! KVM: the only room that knows it. What is here compiles for arm64 alone.

mod gic;
mod gic_state;
mod host;
mod kick;
mod vcpu;
mod vcpu_state;
mod vm;

pub use host::Host;

pub use crate::hypervisor::Error;

/// For `map_err` on a call for the VM.
fn call(what: &'static str) -> impl FnOnce(kvm_ioctls::Error) -> Error {
    move |errno| Error::Call { what, vcpu: None, source: errno.into() }
}

/// For `map_err` on a call for one vCPU.
fn vcpu_call(what: &'static str, vcpu: u32) -> impl FnOnce(kvm_ioctls::Error) -> Error {
    move |errno| Error::Call { what, vcpu: Some(vcpu), source: errno.into() }
}
