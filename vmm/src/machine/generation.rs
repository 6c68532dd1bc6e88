//! The generation ID of the VM: 16 random bytes, new whenever a guest boots or is restored, by which it finds that it
//! continues beside another of the same past.
//!
//! # References
//! Linux Documentation/devicetree/bindings/rng/microsoft,vmgenid.yaml, drivers/virt/vmgenid.c

use arch::layout;
use rustix::io::Errno;

use super::Error;
use crate::backends::entropy;
use crate::hypervisor::Vm;
use crate::memory::SharedPage;

/// Gives the guest, which has not run in this process, a new ID.
pub(super) fn renew(vm: &mut dyn Vm) -> Result<(), Error> {
    let new = || -> Result<SharedPage, Errno> {
        let (mut page, mut id) = (SharedPage::new()?, [0; 16]);
        entropy::fill(&mut id)?;
        page.write(&id);
        Ok(page)
    };
    let page = new().map_err(Error::Generation)?;
    Ok(vm.show(layout::GENERATION.base, page)?)
}

/// Notifies a guest that was restored. Its interrupt controller has its state: it would lose an interrupt of before.
pub(super) fn announce(vm: &dyn Vm) -> Result<(), Error> {
    let line = vm.level_irq(layout::GENERATION_SPI);
    // An edge: the guest has it, or no driver for it.
    let raised = line.set(true).and_then(|()| line.set(false));
    raised.map_err(Error::GenerationInterrupt)
}
