//! Network interfaces, as the configuration file and `--net` describe them.

use std::path::PathBuf;
use std::str::FromStr;

use serde::de::Deserializer;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::RateLimiterSection;
use super::file::Object;

/// Firecracker's `NetworkInterface`, with backends beside its tap.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct NetworkInterfaceSection {
    /// Its name in the API, in metrics and in saved states.
    pub iface_id: String,
    /// What is behind it. It may be left out where another field says so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backend: Option<NetBackend>,
    /// The tap of the host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_dev_name: Option<String>,
    /// A descriptor of a tap that the process is started with. A field of Tessera's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fd: Option<i32>,
    /// The Unix socket of a peer. A field of Tessera's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub socket: Option<PathBuf>,
    /// Ports of the host that lead to ports of the guest, each as `HOST:GUEST`. A field of Tessera's own.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub forward: Vec<String>,
    /// The guest's address, six bytes as `02:00:00:00:00:01`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guest_mac: Option<String>,
    /// The greatest packet that the guest is to send.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u16>,
    /// Limits on what the guest receives.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rx_rate_limiter: Option<RateLimiterSection>,
    /// Limits on what the guest sends.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tx_rate_limiter: Option<RateLimiterSection>,
}

/// What is behind a network interface.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum NetBackend {
    /// A tap of the host.
    Tap,
    /// A peer on a Unix socket.
    Stream,
    /// A passt of the VM's own.
    User,
}

/// The value of `--net`: `tap=NAME`, `fd=N`, `stream=PATH` or `user`, and further `KEY=VALUE`, separated by commas.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct NetFlag(NetworkInterfaceSection);

/// Why the value of `--net` is not understood.
#[derive(Clone, Debug, Error, Eq, PartialEq)]
pub enum ParseNetError {
    /// A key that is none.
    #[error("'{0}' is not known: use tap=, fd=, stream= or user, and id=, mac=, mtu=, forward=")]
    Key(String),
    /// One key twice, or two backends.
    #[error("'{0}' is one too many: keep one backend, and each key once")]
    Twice(String),
    /// No backend.
    #[error("no backend: begin with tap=NAME, fd=N, stream=PATH or user")]
    NoBackend,
    /// A value that is no number of the range.
    #[error("'{key}={value}' is not understood: use a number up to {most}")]
    Number {
        /// The key.
        key: &'static str,
        /// What it was given.
        value: String,
        /// The greatest.
        most: i32,
    },
}

impl FromStr for NetFlag {
    type Err = ParseNetError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut section = NetworkInterfaceSection::default();
        for item in text.split(',') {
            let twice = |fresh: bool| match fresh {
                true => Ok(()),
                false => Err(ParseNetError::Twice(item.to_owned())),
            };
            let (key, value) = item.split_once('=').unwrap_or((item, ""));
            let backend = match key {
                "tap" | "fd" => Some(NetBackend::Tap),
                "stream" => Some(NetBackend::Stream),
                "user" if key == item => Some(NetBackend::User),
                _ => None,
            };
            if backend.is_some() {
                twice(section.backend.is_none())?;
                section.backend = backend;
            }
            let given = || value.to_owned();
            match key {
                "tap" => section.host_dev_name = Some(given()),
                "fd" => section.fd = Some(number("fd", value, i32::MAX)?),
                "stream" => section.socket = Some(given().into()),
                "user" if key == item => {}
                "id" => {
                    twice(section.iface_id.is_empty())?;
                    section.iface_id = given();
                }
                "mac" => twice(section.guest_mac.replace(given()).is_none())?,
                "mtu" => {
                    let mtu = number("mtu", value, u16::MAX.into())?;
                    twice(section.mtu.replace(mtu as u16).is_none())?;
                }
                "forward" => section.forward.push(given()),
                _ => return Err(ParseNetError::Key(item.to_owned())),
            }
        }
        match section.backend {
            Some(_) => Ok(Self(section)),
            None => Err(ParseNetError::NoBackend),
        }
    }
}

fn number(key: &'static str, value: &str, most: i32) -> Result<i32, ParseNetError> {
    let parsed = value.parse().ok().filter(|number| (0..=most).contains(number));
    parsed.ok_or_else(|| ParseNetError::Number { key, value: value.to_owned(), most })
}

/// The interfaces that these flags describe. Those without a name get eth0 and so on, by their place.
pub(super) fn sections(flags: &[NetFlag]) -> Vec<NetworkInterfaceSection> {
    let named = |(index, flag): (usize, &NetFlag)| {
        let mut section = flag.0.clone();
        if section.iface_id.is_empty() {
            section.iface_id = format!("eth{index}");
        }
        section
    };
    flags.iter().enumerate().map(named).collect()
}

/// A list, which Firecracker leaves empty or `null` where there is none.
pub(super) fn list<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Vec<NetworkInterfaceSection>, D::Error> {
    let list = Option::<Vec<Object<NetworkInterfaceSection>>>::deserialize(deserializer)?;
    Ok(list.unwrap_or_default().into_iter().map(|Object(section)| section).collect())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn parse(text: &str) -> Result<NetworkInterfaceSection, ParseNetError> {
        text.parse().map(|NetFlag(section)| section)
    }

    #[test]
    fn each_backend_is_understood() {
        let tap = parse("tap=tap0,mac=02:00:00:00:00:01,mtu=9000,id=lan").unwrap();
        assert_eq!((tap.backend, tap.host_dev_name), (Some(NetBackend::Tap), Some("tap0".into())));
        assert_eq!((tap.mtu, &*tap.iface_id), (Some(9000), "lan"));
        assert_eq!(tap.guest_mac.as_deref(), Some("02:00:00:00:00:01"));
        assert_eq!(parse("fd=7").unwrap().fd, Some(7));
        assert_eq!(parse("id=x,stream=/run/a=b").unwrap().socket, Some("/run/a=b".into()));
        let user = parse("user,forward=2222:22,forward=8080:80").unwrap();
        assert_eq!((user.backend, user.forward.len()), (Some(NetBackend::User), 2));
    }

    #[test]
    fn what_is_no_interface_is_refused() {
        for (text, error) in [
            ("", ParseNetError::Key(String::new())),
            ("mtu=1500", ParseNetError::NoBackend),
            ("tap=a,user", ParseNetError::Twice("user".into())),
            ("tap=a,tap=b", ParseNetError::Twice("tap=b".into())),
            ("user,mac=a,mac=b", ParseNetError::Twice("mac=b".into())),
            ("user=x", ParseNetError::Key("user=x".into())),
            ("user,", ParseNetError::Key(String::new())),
            ("bridge=b", ParseNetError::Key("bridge=b".into())),
        ] {
            assert_eq!(parse(text).unwrap_err(), error, "{text}");
        }
        for text in ["fd=-1", "fd=x", "fd=", "user,mtu=65536", "user,mtu=1e3"] {
            assert!(matches!(parse(text), Err(ParseNetError::Number { .. })), "{text}");
        }
    }

    #[test]
    fn interfaces_without_a_name_are_numbered() {
        let flags = ["user", "user,id=b", "user"].map(|text| text.parse().unwrap());
        let names: Vec<_> = sections(&flags).into_iter().map(|section| section.iface_id).collect();
        assert_eq!(names, ["eth0", "b", "eth2"]);
    }

    fn of_file(text: &str) -> Result<Vec<NetworkInterfaceSection>, serde_json::Error> {
        let file = format!("{{\"network-interfaces\": {text}}}");
        serde_json::from_str::<super::super::Config>(&file).map(|config| config.network_interfaces)
    }

    #[test]
    fn firecrackers_section_is_read_and_an_empty_one_is_none() {
        for none in ["null", "[]"] {
            assert_eq!(of_file(none).unwrap(), []);
        }
        let read = of_file(
            r#"[{"iface_id": "eth0", "guest_mac": "06:00:AC:10:00:02", "host_dev_name": "tap0",
                "rx_rate_limiter": {"ops": {"size": 10, "refill_time": 100}}, "tx_rate_limiter": null}]"#,
        )
        .unwrap();
        assert_eq!(read[0].host_dev_name.as_deref(), Some("tap0"));
        assert!(read[0].rx_rate_limiter.is_some() && read[0].tx_rate_limiter.is_none());
        for wrong in ["{}", "[[\"eth0\"]]", "[{}]", "[{\"iface_id\": \"a\", \"vlan\": 1}]"] {
            assert!(of_file(wrong).is_err(), "{wrong}");
        }
    }
}
