//! What KVM gives of vCPUs and interrupt controllers, and takes back: a state that is restored is the one that is saved
//! again, for each vCPU its own.

use arch::regs::RegId;
use arch::units::Bytes;
use testing::lab::Lab;
use vmm::hypervisor::state::{GicState, SError, SavedRegisters, VcpuState};
use vmm::hypervisor::{CpuRequest, Hypervisor, Vcpus, Vm};
use vmm::memory::{Attributes, GuestRam};

/// KVM_DEV_ARM_VGIC_GRP_DIST_REGS, _CPU_REGS, _REDIST_REGS and _CPU_SYSREGS.
const DISTRIBUTOR: u32 = 1;
const CPU_V2: u32 = 2;
const REDISTRIBUTOR: u32 = 5;
const CPU_V3: u32 = 6;

/// Those of an interrupt controller, neither the fewest nor the most.
const INTERRUPTS: u32 = 96;

/// RGSR_EL1, GCR_EL1, TFSR_EL1 and TFSRE0_EL1: the state of a processor's tags.
const MTE_REGISTERS: [u64; 4] =
    [0x6030_0000_0013_c085, 0x6030_0000_0013_c086, 0x6030_0000_0013_c2b0, 0x6030_0000_0013_c2b1];

#[cfg(target_arch = "aarch64")]
fn hypervisor() -> Box<dyn Hypervisor> {
    Box::new(vmm::kvm::Host::open().unwrap())
}

/// Its tests run in the lab alone.
#[cfg(not(target_arch = "aarch64"))]
fn hypervisor() -> Box<dyn Hypervisor> {
    unreachable!("the lab's hosts are arm64")
}

/// A VM that has not run. It goes after its vCPUs.
struct Made {
    cpus: Vcpus,
    vm: Box<dyn Vm>,
}

fn make(count: u32, mte: bool, saved: Option<(&VcpuState, &GicState)>) -> Made {
    let size = Bytes::mib(64);
    let attributes = Attributes { tags: mte, ..Attributes::default() };
    let (host, ram) = (hypervisor(), GuestRam::new(size, attributes).unwrap());
    let mut vm = host.create_vm(host.ipa_bits_for(size).unwrap(), ram, mte).unwrap();
    // One that is restored has as many as were saved, whatever is asked for.
    let interrupts = if saved.is_some() { 64 } else { INTERRUPTS };
    let cpus = vm.create_vcpus(&CpuRequest { count, pmu: false, interrupts, saved }).unwrap();
    Made { cpus, vm }
}

/// Gives the registers of each CPU values that no other has, in the words that are its own.
fn differ(state: &mut GicState) {
    for register in &mut state.registers {
        let (cpu, offset) = (register.attribute >> 32, register.attribute & 0xffff_ffff);
        let frame = match (state.version, register.group) {
            (3, REDISTRIBUTOR) => 0x1_0000,
            (2, DISTRIBUTOR) => 0,
            (3, CPU_V3) if offset == 0xc230 => {
                // ICC_PMR_EL1, of which KVM has five bits.
                register.value = 0xf0 - 0x10 * cpu;
                continue;
            }
            (3, CPU_V3) if offset == 0xc648 => {
                // ICC_AP1R0_EL1.
                register.value = 1 << (cpu + 3);
                continue;
            }
            (2, CPU_V2) if offset == 0x04 => {
                // GICC_PMR, without the three bits that KVM has not.
                register.value = 0x1e - cpu;
                continue;
            }
            _ => continue,
        };
        register.value = match offset.checked_sub(frame) {
            // In group 1.
            Some(0x80) => 1 << (20 + cpu),
            // Enabled: one SGI and one PPI.
            Some(0x100) => 1 << cpu | 1 << (16 + cpu),
            // Pending: a PPI, and with GICv2 the SGI of the next line.
            Some(0x200) if frame == 0 => 1 << 1 | 1 << (17 + cpu),
            Some(0x200) => 1 << (17 + cpu),
            Some(0xf20) if frame == 0 => 1 << (8 + (cpu + 1) % 4),
            Some(0x300) => 1 << (25 + cpu),
            Some(0x400..0x420) => 0x0808_0808 * (cpu + 1 + offset / 4 % 8),
            _ => register.value,
        };
    }
}

/// How many CPUs have values that no other has.
fn different(state: &GicState, cpus: u64) -> usize {
    let values = |cpu: u64| -> Vec<u64> {
        let own = state.registers.iter().filter(|register| register.attribute >> 32 == cpu);
        // With GICv2 the first CPU's are among those of all.
        own.filter(|register| [0x1_0100, 0x100].contains(&(register.attribute & 0xffff_ffff)))
            .map(|register| register.value)
            .collect()
    };
    (0..cpus).map(values).collect::<std::collections::BTreeSet<_>>().len()
}

fn each_cpu_has_its_own(version: u8) {
    let first = make(4, true, None);
    let mut state = first.vm.save_gic().unwrap();
    assert_eq!((state.version, state.interrupts()), (version, INTERRUPTS));
    differ(&mut state);
    assert_eq!(different(&state, 4), 4);
    let second = make(4, true, None);

    second.vm.restore_gic(&state).unwrap();

    let again = second.vm.save_gic().unwrap();
    for (found, wanted) in again.registers.iter().zip(&state.registers) {
        assert_eq!(found, wanted, "of {} registers", state.registers.len());
    }
    assert_eq!(again, state);
    drop(second.cpus);
}

#[test]
fn each_redistributor_has_its_own_state() {
    Lab::new().run(|| each_cpu_has_its_own(3));
}

#[test]
fn each_cpu_of_a_gicv2_has_its_own_state() {
    Lab::new().qemu("-machine").qemu("gic-version=2").run(|| each_cpu_has_its_own(2));
}

fn set(state: &mut VcpuState, changed: u64, value: u64) {
    let (mut registers, value) = (SavedRegisters::default(), value.to_le_bytes());
    for (id, before) in state.registers.iter() {
        let to = registers.push(id);
        to.copy_from_slice(if id.get() == changed { &value } else { before });
    }
    assert_ne!(registers, state.registers, "{changed:#x}");
    state.registers = registers;
}

fn ids(state: &VcpuState) -> Vec<u64> {
    state.registers.ids().map(RegId::get).collect()
}

fn is_zero(value: &[u8]) -> bool {
    value.iter().all(|byte| *byte == 0)
}

#[test]
fn a_vcpu_takes_its_state_back_with_vector_lengths_serror_and_power() {
    Lab::new().run(|| {
        let first = make(2, true, None);
        let gic = first.vm.save_gic().unwrap();
        let mut states: Vec<_> = first.cpus.vcpus.iter().map(|vcpu| vcpu.save().unwrap()).collect();
        println!("{} registers", states[0].registers.len());
        // Those that are not set when they are to be zero are.
        let known = states[0].registers.iter().filter(|(id, _)| id.is_zero_at_reset());
        let (known, zero): (Vec<_>, Vec<_>) = known.map(|(id, value)| (id, is_zero(value))).unzip();
        assert!(known.len() > 64 && zero.iter().all(|zero| *zero), "{known:?} {zero:?}");
        // The second waits for PSCI CPU_ON.
        assert_eq!((states[0].mp_state, states[1].mp_state), (0, 5));
        assert!(MTE_REGISTERS.iter().all(|id| ids(&states[0]).contains(id)));
        for (index, state) in states.iter_mut().enumerate() {
            let index = index as u64;
            // Only the shortest vectors, as on another processor: set before the vCPU is complete.
            assert!(state.sve_lengths.is_some_and(|lengths| lengths != [1, 0, 0, 0, 0, 0, 0, 0]));
            state.sve_lengths = Some([1, 0, 0, 0, 0, 0, 0, 0]);
            state.serror = Some(SError { esr: Some(0x12 + index) });
            set(state, RegId::x(5).unwrap().get(), 0x5555_0000 + index);
            set(state, RegId::APIAKEYLO_EL1.get(), 0x1234_5678 + index);
            set(state, MTE_REGISTERS[0], 0x0001_2301 + (index << 8));
        }
        drop(first);
        let second = make(2, true, Some((&states[0], &gic)));
        let Made { mut cpus, vm } = second;
        // What all vCPUs share is of no state: it stays.
        cpus.vcpus[0].set_counter(1 << 40).unwrap();

        for (vcpu, state) in cpus.vcpus.iter_mut().zip(&states) {
            vcpu.restore(state).unwrap();
        }
        vm.restore_gic(&gic).unwrap();

        for (vcpu, state) in cpus.vcpus.iter().zip(&states) {
            let again = vcpu.save().unwrap();
            let pairs = again.registers.iter().zip(state.registers.iter());
            let different: Vec<_> = pairs.filter(|(found, wanted)| found != wanted).collect();
            assert!(different.is_empty(), "{different:?}");
            assert_eq!(again, *state);
            let counter = vcpu.counter().unwrap();
            assert!(counter >> 40 == 1, "{counter:#x}");
        }
        drop(cpus);
    });
}

#[test]
fn a_vcpu_without_tags_does_not_take_the_state_of_one_with_them() {
    Lab::new().run(|| {
        let with = make(1, true, None).cpus.vcpus[0].save().unwrap();
        let mut without = make(1, false, None);
        let own = without.cpus.vcpus[0].save().unwrap();
        assert!(!MTE_REGISTERS.iter().any(|id| ids(&own).contains(id)));

        let error = without.cpus.vcpus[0].restore(&with).unwrap_err();

        assert!(
            error.to_string().contains("RGSR_EL1") || error.to_string().contains("0x60300000"),
            "{error}"
        );
        println!("{error}");
    });
}
