//! Validated network interfaces.

use std::collections::HashSet;
use std::path::PathBuf;

use rustix::io::Errno;
use rustix::rand::{GetRandomFlags, getrandom};
use thiserror::Error;

use super::{RateLimiterSpec, RefillError};
use crate::config::{NetBackend, NetworkInterfaceSection};

/// The longest name of an interface of the host (IFNAMSIZ, less its final zero).
const MAX_DEVICE: usize = 15;

/// The longest name of an interface: as long as that of a VM.
const MAX_ID: usize = 64;

/// The least MTU that IPv4 works with (RFC 791), and so Linux.
const MIN_MTU: u16 = 68;

/// A network interface of the guest.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct NetSpec {
    /// Its name.
    pub id: String,
    /// What is behind it.
    pub backend: NetBackendSpec,
    /// The guest's address.
    pub mac: [u8; 6],
    /// The greatest packet that the guest is to send.
    pub mtu: Option<u16>,
    /// Limits on what the guest receives.
    pub rx_limits: RateLimiterSpec,
    /// Limits on what the guest sends.
    pub tx_limits: RateLimiterSpec,
}

/// What is behind a network interface.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum NetBackendSpec {
    /// The tap of this name.
    Tap(String),
    /// The tap that the process has been started with as this descriptor.
    Descriptor(i32),
    /// What listens on this Unix socket.
    Stream(PathBuf),
    /// A passt of the VM's own, with these ports.
    User(Vec<PortForward>),
}

/// A TCP port of the host that leads to one of the guest.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct PortForward {
    /// The host's.
    pub host: u16,
    /// The guest's.
    pub guest: u16,
}

/// A network interface that makes no sense.
#[derive(Debug, Error, Eq, PartialEq)]
pub enum NetError {
    /// A name that is empty, long, or has odd characters.
    #[error(
        "the network interface's id '{0}' is not usable: 1 to {MAX_ID} letters, digits, '_' and '-'"
    )]
    Id(String),
    /// One name twice.
    #[error("two network interfaces have the id '{0}': give each its own")]
    Twice(String),
    /// Fields that name no backend, or more than one.
    #[error(
        "network interface {0}: name one backend, by host_dev_name, fd, socket, or backend user; forward is for \
         user alone"
    )]
    Backend(String),
    /// A name that no interface of the host has.
    #[error(
        "network interface {id}: '{name}' is no name of a tap: 1 to {MAX_DEVICE} letters, digits, '.', '_' and '-'"
    )]
    Device {
        /// The interface.
        id: String,
        /// The name.
        name: String,
    },
    /// Standard input, output or error, or no descriptor at all.
    #[error("network interface {id}: fd {number} is no descriptor of a tap: pass 3 or more")]
    Descriptor {
        /// The interface.
        id: String,
        /// The number.
        number: i32,
    },
    /// One thing of the host behind two interfaces.
    #[error(
        "network interface {0} has the tap, descriptor or socket of another: give each its own"
    )]
    Shared(String),
    /// An address that is none.
    #[error(
        "network interface {id}: '{mac}' is no address: use six bytes such as 02:00:00:00:00:01, the first one even"
    )]
    Mac {
        /// The interface.
        id: String,
        /// The address.
        mac: String,
    },
    /// No address can be made.
    #[error(
        "network interface {id}: the kernel has no random bytes for an address: give it one, with mac="
    )]
    NoRandomness {
        /// The interface.
        id: String,
        /// The kernel's reason.
        #[source]
        source: Errno,
    },
    /// An MTU that is too small.
    #[error("network interface {id}: an MTU of {mtu} is too small: use {MIN_MTU} to 65535")]
    Mtu {
        /// The interface.
        id: String,
        /// The MTU.
        mtu: u16,
    },
    /// A port that is none.
    #[error(
        "network interface {id}: '{forward}' is no pair of ports: use HOST:GUEST, such as 2222:22"
    )]
    Forward {
        /// The interface.
        id: String,
        /// What was given.
        forward: String,
    },
    /// A limit that is none.
    #[error(transparent)]
    Limits(#[from] RefillError),
}

/// Checks all interfaces of the VM that the user calls `vm`.
///
/// # Errors
/// When one of them makes no sense, or two exclude each other.
pub(super) fn interfaces(
    sections: Vec<NetworkInterfaceSection>,
    vm: Option<&str>,
) -> Result<Vec<NetSpec>, NetError> {
    let mut ids = HashSet::new();
    let mut interfaces: Vec<NetSpec> = Vec::new();
    for (index, section) in (0..).zip(sections) {
        let interface = NetSpec::new(section, vm, index)?;
        if !ids.insert(interface.id.clone()) {
            return Err(NetError::Twice(interface.id));
        }
        let users = matches!(interface.backend, NetBackendSpec::User(_));
        if !users && interfaces.iter().any(|other| other.backend == interface.backend) {
            return Err(NetError::Shared(interface.id));
        }
        interfaces.push(interface);
    }
    Ok(interfaces)
}

impl NetSpec {
    fn new(
        section: NetworkInterfaceSection,
        vm: Option<&str>,
        index: u32,
    ) -> Result<Self, NetError> {
        let id = section.iface_id;
        let usable = (1..=MAX_ID).contains(&id.len())
            && id.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_-".contains(&byte));
        if !usable {
            return Err(NetError::Id(id));
        }
        let backend = (section.backend, section.host_dev_name, section.fd, section.socket);
        let forward = section.forward;
        let backend = match backend {
            (None | Some(NetBackend::Tap), Some(name), None, None) if forward.is_empty() => {
                NetBackendSpec::Tap(device(&id, name)?)
            }
            (None | Some(NetBackend::Tap), None, Some(number), None) if forward.is_empty() => {
                if number < 3 {
                    return Err(NetError::Descriptor { id, number });
                }
                NetBackendSpec::Descriptor(number)
            }
            (None | Some(NetBackend::Stream), None, None, Some(path))
                if forward.is_empty() && !path.as_os_str().is_empty() =>
            {
                NetBackendSpec::Stream(path)
            }
            (Some(NetBackend::User), None, None, None) => {
                let pairs = forward.into_iter().map(|text| {
                    let wrong = |forward| NetError::Forward { id: id.clone(), forward };
                    PortForward::parse(&text).ok_or_else(|| wrong(text))
                });
                NetBackendSpec::User(pairs.collect::<Result<_, _>>()?)
            }
            _ => return Err(NetError::Backend(id)),
        };
        let mac = match section.guest_mac {
            Some(mac) => {
                let parsed = parse_mac(&mac);
                parsed.ok_or_else(|| NetError::Mac { id: id.clone(), mac })?
            }
            None => match vm {
                Some(vm) => named_mac(vm, index),
                None => random_mac()
                    .map_err(|source| NetError::NoRandomness { id: id.clone(), source })?,
            },
        };
        if let Some(mtu) = section.mtu.filter(|mtu| *mtu < MIN_MTU) {
            return Err(NetError::Mtu { id, mtu });
        }
        let limits = |section: Option<_>| RateLimiterSpec::new(section.unwrap_or_default());
        Ok(Self {
            id,
            backend,
            mac,
            mtu: section.mtu,
            rx_limits: limits(section.rx_rate_limiter)?,
            tx_limits: limits(section.tx_rate_limiter)?,
        })
    }

    /// The socket that it connects to, if it does.
    pub(super) fn socket(&self) -> Option<&std::path::Path> {
        match &self.backend {
            NetBackendSpec::Stream(path) => Some(path),
            _ => None,
        }
    }

    /// The section that it came from, defaults filled in.
    pub fn to_section(&self) -> NetworkInterfaceSection {
        let mut section = NetworkInterfaceSection {
            iface_id: self.id.clone(),
            guest_mac: Some(self.mac.map(|byte| format!("{byte:02x}")).join(":")),
            mtu: self.mtu,
            rx_rate_limiter: self.rx_limits.to_section(),
            tx_rate_limiter: self.tx_limits.to_section(),
            ..NetworkInterfaceSection::default()
        };
        section.backend = Some(match &self.backend {
            NetBackendSpec::Tap(_) | NetBackendSpec::Descriptor(_) => NetBackend::Tap,
            NetBackendSpec::Stream(_) => NetBackend::Stream,
            NetBackendSpec::User(_) => NetBackend::User,
        });
        match &self.backend {
            NetBackendSpec::Tap(name) => section.host_dev_name = Some(name.clone()),
            NetBackendSpec::Descriptor(number) => section.fd = Some(*number),
            // JSON is UTF-8; a path that is not is shown as well as it can be.
            NetBackendSpec::Stream(path) => {
                section.socket = Some(path.to_string_lossy().into_owned().into());
            }
            NetBackendSpec::User(forward) => {
                let shown = |pair: &PortForward| format!("{}:{}", pair.host, pair.guest);
                section.forward = forward.iter().map(shown).collect();
            }
        }
        section
    }
}

impl PortForward {
    fn parse(text: &str) -> Option<Self> {
        let (host, guest) = text.split_once(':')?;
        let port = |text: &str| text.parse::<u16>().ok().filter(|port| *port > 0);
        Some(Self { host: port(host)?, guest: port(guest)? })
    }
}

/// The kernel has no other rule than dev_valid_name (Linux `net/core/dev.c`) and `%`, which asks it for a number.
fn device(id: &str, name: String) -> Result<String, NetError> {
    let usable = (1..=MAX_DEVICE).contains(&name.len())
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte))
        && ![".", ".."].contains(&&*name);
    if usable { Ok(name) } else { Err(NetError::Device { id: id.to_owned(), name }) }
}

/// An address of one station: Linux replaces another one by one of its own.
fn parse_mac(text: &str) -> Option<[u8; 6]> {
    let mut mac = [0; 6];
    let mut bytes = text.split(':');
    for byte in &mut mac {
        let digits = bytes.next().filter(|digits| digits.len() == 2)?;
        if !digits.bytes().all(|digit| digit.is_ascii_hexdigit()) {
            return None;
        }
        *byte = u8::from_str_radix(digits, 16).ok()?;
    }
    let single = mac[0] & 1 == 0 && mac != [0; 6];
    (bytes.next().is_none() && single).then_some(mac)
}

/// An address that is the same at each start: of the VM's name and the place of the interface among others (FNV-1a,
/// 64 bits).
fn named_mac(vm: &str, index: u32) -> [u8; 6] {
    let bytes = vm.bytes().chain([0]).chain(index.to_le_bytes());
    let hash = bytes.fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    let [.., a, b, c, d, e, f] = (hash ^ hash >> 16).to_be_bytes();
    local([a, b, c, d, e, f])
}

/// An address that no other VM has: VMs without a name may be on one network, where each address is of one station.
fn random_mac() -> Result<[u8; 6], Errno> {
    let mut mac = [0; 6];
    // So few bytes are never fewer, and no signal interrupts the call but before the host has any (getrandom(2)).
    getrandom(&mut mac, GetRandomFlags::empty())?;
    Ok(local(mac))
}

/// The locally administered address of one station that these bytes are closest to (IEEE 802, 8.2).
fn local(mut mac: [u8; 6]) -> [u8; 6] {
    mac[0] = mac[0] & !1 | 2;
    mac
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn tap(id: &str, name: &str) -> NetworkInterfaceSection {
        NetworkInterfaceSection {
            iface_id: id.into(),
            host_dev_name: Some(name.into()),
            ..NetworkInterfaceSection::default()
        }
    }

    fn check(section: NetworkInterfaceSection) -> Result<NetSpec, NetError> {
        interfaces(vec![section], Some("vm")).map(|mut all| all.remove(0))
    }

    #[test]
    fn firecrackers_interface_is_a_tap() {
        let spec = check(tap("eth0", "tap0")).unwrap();

        assert_eq!(spec.backend, NetBackendSpec::Tap("tap0".into()));
        assert_eq!((spec.mtu, spec.rx_limits), (None, RateLimiterSpec::default()));
        assert_eq!(spec.mac[0] & 3, 2, "locally administered, of one station");
    }

    /// The addresses of a VM's two interfaces.
    fn macs(vm: Option<&str>) -> Vec<[u8; 6]> {
        let sections = vec![tap("eth0", "tap0"), tap("eth1", "tap1")];
        interfaces(sections, vm).unwrap().iter().map(|interface| interface.mac).collect()
    }

    #[test]
    fn the_addresses_of_a_vm_with_a_name_are_its_own_and_the_same_at_each_start() {
        let all: HashSet<_> = ["a", "b"].into_iter().flat_map(|vm| macs(Some(vm))).collect();
        assert_eq!(all.len(), 4);
        assert_eq!(macs(Some("tessera")), macs(Some("tessera")));
    }

    #[test]
    fn vms_without_a_name_share_no_address() {
        let all: Vec<_> = [macs(None), macs(None)].concat();
        assert_eq!(all.iter().collect::<HashSet<_>>().len(), 4, "{all:x?}");
        assert!(all.iter().all(|mac| mac[0] & 3 == 2), "{all:x?}");
    }

    #[test]
    fn what_it_shows_is_what_it_takes() {
        let empty = NetworkInterfaceSection { iface_id: "x".into(), ..Default::default() };
        for section in [
            NetworkInterfaceSection { mtu: Some(68), ..tap("x", "tap.0-a_b") },
            NetworkInterfaceSection { fd: Some(3), ..empty.clone() },
            NetworkInterfaceSection { socket: Some("s".into()), ..empty.clone() },
            NetworkInterfaceSection {
                backend: Some(NetBackend::User),
                forward: vec!["2222:22".into()],
                guest_mac: Some("02:0a:Ff:00:00:01".into()),
                ..empty.clone()
            },
        ] {
            let spec = check(section).unwrap();
            assert_eq!(check(spec.to_section()).unwrap(), spec);
        }
    }

    #[test]
    fn backends_exclude_each_other() {
        let both = NetworkInterfaceSection { fd: Some(3), ..tap("x", "tap0") };
        let other = NetworkInterfaceSection { backend: Some(NetBackend::User), ..tap("x", "tap0") };
        let forward = NetworkInterfaceSection { forward: vec!["1:1".into()], ..tap("x", "tap0") };
        let none = NetworkInterfaceSection { iface_id: "x".into(), ..Default::default() };
        for section in [both, other, forward, none] {
            assert_eq!(check(section).unwrap_err(), NetError::Backend("x".into()));
        }
    }

    #[test]
    fn values_that_make_no_sense_are_refused() {
        for name in ["", ".", "..", "a/b", "tap%d", "sixteen-letters-", "t p"] {
            assert!(matches!(check(tap("x", name)), Err(NetError::Device { .. })), "{name}");
        }
        for id in ["", "a b", "a/b", &"x".repeat(65)] {
            assert!(matches!(check(tap(id, "t")), Err(NetError::Id(_))), "{id}");
        }
        for mac in [
            "",
            "02:00:00:00:00",
            "02:00:00:00:00:01:02",
            "01:00:00:00:00:01",
            "00:00:00:00:00:00",
            "2:0:0:0:0:1",
            "+2:00:00:00:00:01",
            "02-00-00-00-00-01",
        ] {
            let section = NetworkInterfaceSection { guest_mac: Some(mac.into()), ..tap("x", "t") };
            assert!(matches!(check(section), Err(NetError::Mac { .. })), "{mac}");
        }
        for number in [-1, 0, 2] {
            let section = NetworkInterfaceSection {
                iface_id: "x".into(),
                fd: Some(number),
                ..Default::default()
            };
            assert!(matches!(check(section), Err(NetError::Descriptor { .. })));
        }
        for forward in ["", "1", "1:", "0:1", "1:65536", "1:2:3", "a:b"] {
            let section = NetworkInterfaceSection {
                iface_id: "x".into(),
                backend: Some(NetBackend::User),
                forward: vec![forward.into()],
                ..Default::default()
            };
            assert!(matches!(check(section), Err(NetError::Forward { .. })), "{forward}");
        }
        let section = NetworkInterfaceSection { mtu: Some(67), ..tap("x", "t") };
        assert!(matches!(check(section), Err(NetError::Mtu { .. })));
    }

    #[test]
    fn names_and_what_is_behind_them_are_used_once() {
        let same = interfaces(vec![tap("x", "a"), tap("x", "b")], Some("vm")).unwrap_err();
        assert_eq!(same, NetError::Twice("x".into()));
        let same = interfaces(vec![tap("x", "a"), tap("y", "a")], Some("vm")).unwrap_err();
        assert_eq!(same, NetError::Shared("y".into()));
    }
}
