//! The guest's interrupt controller, emulated by KVM: GICv3 where the host has one, GICv2 elsewhere.

use arch::gic::Gic;
use arch::range::MemoryRange;
use kvm_bindings::{
    KVM_CREATE_DEVICE_TEST, KVM_DEV_ARM_VGIC_CTRL_INIT, KVM_DEV_ARM_VGIC_GRP_ADDR,
    KVM_DEV_ARM_VGIC_GRP_CTRL, KVM_DEV_ARM_VGIC_GRP_NR_IRQS, KVM_VGIC_V2_ADDR_TYPE_CPU,
    KVM_VGIC_V2_ADDR_TYPE_DIST, KVM_VGIC_V3_ADDR_TYPE_DIST, KVM_VGIC_V3_ADDR_TYPE_REDIST_REGION,
    kvm_create_device, kvm_device_attr, kvm_device_type_KVM_DEV_TYPE_ARM_VGIC_V2,
    kvm_device_type_KVM_DEV_TYPE_ARM_VGIC_V3,
};
use kvm_ioctls::{DeviceFd, VmFd};

use super::{Error, call};

/// The best interrupt controller that this host offers a guest; or the one of this version, if it offers that.
pub(super) fn probe(vm: &VmFd, cpus: u32, version: Option<u8>) -> Result<Gic, Error> {
    let offered = |type_| {
        let mut test = kvm_create_device { type_, fd: 0, flags: KVM_CREATE_DEVICE_TEST };
        // A test creates nothing, but the wrapper takes the 0 in `fd` for a descriptor and would close
        // it with its value: standard input.
        vm.create_device(&mut test).map(std::mem::forget).is_ok()
    };
    let wanted = |is: u8| version.is_none_or(|version| version == is);
    if wanted(3) && offered(kvm_device_type_KVM_DEV_TYPE_ARM_VGIC_V3) {
        Ok(Gic::V3 { cpus })
    } else if wanted(2) && offered(kvm_device_type_KVM_DEV_TYPE_ARM_VGIC_V2) {
        Ok(Gic::V2)
    } else if let Some(saved) = version {
        let here = if saved == 2 { 3 } else { 2 };
        Err(Error::SavedGic { saved, here })
    } else {
        Err(Error::NoGic)
    }
}

/// Creates the interrupt controller, of so many interrupts; every vCPU must exist already.
///
/// References: Documentation/virt/kvm/devices/arm-vgic-v3.rst, arm-vgic.rst.
pub(super) fn create(vm: &VmFd, gic: &Gic, interrupts: u32) -> Result<DeviceFd, Error> {
    let type_ = match gic {
        Gic::V3 { .. } => kvm_device_type_KVM_DEV_TYPE_ARM_VGIC_V3,
        Gic::V2 => kvm_device_type_KVM_DEV_TYPE_ARM_VGIC_V2,
    };
    let device = vm
        .create_device(&mut kvm_create_device { type_, fd: 0, flags: 0 })
        .map_err(call("create the interrupt controller"))?;
    set_addresses(&device, gic)?;
    set(&device, KVM_DEV_ARM_VGIC_GRP_NR_IRQS, 0, &interrupts)?;
    set(&device, KVM_DEV_ARM_VGIC_GRP_CTRL, KVM_DEV_ARM_VGIC_CTRL_INIT, &0u64)?;
    Ok(device)
}

fn set_addresses(device: &DeviceFd, gic: &Gic) -> Result<(), Error> {
    let distributor = gic.distributor().base.0;
    match gic {
        Gic::V3 { cpus } => {
            let addresses = KVM_DEV_ARM_VGIC_GRP_ADDR;
            set(device, addresses, KVM_VGIC_V3_ADDR_TYPE_DIST, &distributor)?;
            let MemoryRange { base, .. } = gic.redistributors().ok_or(Error::NoGic)?;
            // Bits 63..52 count the redistributors, 51..16 are the base, 11..0 the region's index.
            let region = u64::from(*cpus) << 52 | base.0;
            set(device, addresses, KVM_VGIC_V3_ADDR_TYPE_REDIST_REGION, &region)
        }
        Gic::V2 => {
            let addresses = KVM_DEV_ARM_VGIC_GRP_ADDR;
            set(device, addresses, KVM_VGIC_V2_ADDR_TYPE_DIST, &distributor)?;
            let MemoryRange { base, .. } = gic.cpu_interface().ok_or(Error::NoGic)?;
            set(device, addresses, KVM_VGIC_V2_ADDR_TYPE_CPU, &base.0)
        }
    }
}

fn set<T>(device: &DeviceFd, group: u32, attribute: u32, value: &T) -> Result<(), Error> {
    let attribute = kvm_device_attr {
        flags: 0,
        group,
        attr: attribute.into(),
        addr: std::ptr::from_ref(value) as u64,
    };
    device.set_device_attr(&attribute).map_err(call("set up the interrupt controller"))
}
