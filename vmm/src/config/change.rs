//! One change of a configuration that is made piece by piece, before a VM starts.

use super::{
    BalloonSection, BalloonSetting, BootSource, Config, DriveSection, EntropySection,
    LoggerSection, MachineConfig, MetricsSection, MteSection, NetworkInterfaceSection,
    SerialSection, TagStorageSection, VsockSection,
};

/// A section that takes the place of the one before.
#[derive(Clone, Debug)]
pub enum ConfigChange {
    /// Kernel, initrd and command line.
    BootSource(BootSource),
    /// vCPUs and memory.
    MachineConfig(MachineConfig),
    /// Those fields of vCPUs and memory that are given.
    MachineConfigUpdate(MachineConfig),
    /// The disk of this name.
    Drive(DriveSection),
    /// The network interface of this name.
    NetworkInterface(NetworkInterfaceSection),
    /// Sockets between guest and host.
    Vsock(VsockSection),
    /// The memory balloon.
    Balloon(BalloonSection),
    /// A source of random numbers.
    Entropy(EntropySection),
    /// Where the serial port goes.
    Serial(SerialSection),
    /// Where messages go.
    Logger(LoggerSection),
    /// Where counters are written.
    Metrics(MetricsSection),
    /// Whether the guest has MTE.
    Mte(MteSection),
    /// When and from whom tag storage is reserved.
    TagStorage(TagStorageSection),
}

impl ConfigChange {
    /// Makes the change.
    pub fn apply(self, config: &mut Config) {
        match self {
            Self::BootSource(section) => config.boot_source = Some(section),
            Self::MachineConfig(section) => config.machine_config = Some(section),
            Self::MachineConfigUpdate(update) => {
                config.machine_config.get_or_insert_default().update(update);
            }
            Self::Drive(section) => {
                put(&mut config.drives, section, |drive| &drive.drive_id);
            }
            Self::NetworkInterface(section) => {
                put(&mut config.network_interfaces, section, |interface| &interface.iface_id);
            }
            Self::Vsock(section) => config.vsock = Some(section),
            Self::Balloon(section) => config.balloon = BalloonSetting::Section(section),
            Self::Entropy(section) => config.entropy = Some(section),
            Self::Serial(section) => config.serial = Some(section),
            Self::Logger(section) => config.logger = Some(section),
            Self::Metrics(section) => config.metrics = Some(section),
            Self::Mte(section) => config.mte = Some(section),
            Self::TagStorage(section) => config.tag_storage = Some(section),
        }
    }
}

/// Puts a section into a list, in the place of the one that has its name.
fn put<T>(sections: &mut Vec<T>, section: T, name: impl Fn(&T) -> &String) {
    match sections.iter_mut().find(|other| name(other) == name(&section)) {
        Some(other) => *other = section,
        None => sections.push(section),
    }
}

impl MachineConfig {
    /// Replaces the fields that an update has.
    fn update(&mut self, update: Self) {
        let Self {
            vcpu_count,
            mem_size_mib,
            mem_size,
            cpu_template: _,
            smt: _,
            track_dirty_pages,
            huge_pages,
            memory_backing,
            pmu,
            lock_memory,
            clock,
        } = update;
        self.vcpu_count = vcpu_count.or(self.vcpu_count);
        if mem_size_mib.is_some() || mem_size.is_some() {
            (self.mem_size_mib, self.mem_size) = (mem_size_mib, mem_size);
        }
        self.track_dirty_pages = track_dirty_pages.or(self.track_dirty_pages);
        // One of the two says enough; the other one is of the configuration before.
        if huge_pages.is_some() || memory_backing.is_some() {
            (self.huge_pages, self.memory_backing) = (huge_pages, memory_backing);
        }
        self.pmu = pmu.or(self.pmu);
        self.lock_memory = lock_memory.or(self.lock_memory);
        self.clock = clock.or(self.clock);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{HugePages, MemoryBacking};

    fn drive(name: &str, path: &str) -> ConfigChange {
        ConfigChange::Drive(DriveSection {
            drive_id: name.to_owned(),
            path_on_host: Some(path.into()),
            ..DriveSection::default()
        })
    }

    #[test]
    fn a_disk_takes_the_place_of_the_one_of_its_name() {
        let mut config = Config::default();

        drive("a", "/1").apply(&mut config);
        drive("b", "/2").apply(&mut config);
        drive("a", "/3").apply(&mut config);

        let paths =
            config.drives.iter().map(|drive| drive.path_on_host.clone().unwrap_or_default());
        assert_eq!(paths.collect::<Vec<_>>(), [std::path::Path::new("/3"), "/2".as_ref()]);
    }

    #[test]
    fn an_update_of_the_machine_keeps_what_it_does_not_name() {
        let mut machine = MachineConfig {
            vcpu_count: Some(2),
            mem_size_mib: Some(512),
            memory_backing: Some(MemoryBacking::Memfd),
            pmu: Some(true),
            ..MachineConfig::default()
        };

        machine.update(MachineConfig { mem_size_mib: Some(256), ..MachineConfig::default() });
        assert_eq!((machine.vcpu_count, machine.mem_size_mib), (Some(2), Some(256)));
        assert_eq!((machine.memory_backing, machine.pmu), (Some(MemoryBacking::Memfd), Some(true)));

        machine.update(MachineConfig {
            huge_pages: Some(HugePages::TwoMib),
            ..MachineConfig::default()
        });
        assert_eq!(machine.memory_backing, None);
    }
}
