//! Where messages and counters go, as the configuration file describes it.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// Firecracker's `Logger`.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct LoggerSection {
    /// A file or a FIFO that takes the messages, in the place of standard error.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub log_path: Option<PathBuf>,
    /// The least important messages that are written. All of this VMM's are written, with any level.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub level: Option<LogLevel>,
    /// Whether a line has its level. This VMM's messages have none, so it has no effect.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub show_level: Option<bool>,
    /// Whether a line has the place in the source that wrote it. It has no effect.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub show_log_origin: Option<bool>,
    /// The part of the program whose messages are written. It has no effect.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub module: Option<String>,
}

/// Firecracker's levels, in either case.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[allow(missing_docs, reason = "they are the words of every logger")]
pub enum LogLevel {
    #[serde(alias = "ERROR", alias = "error")]
    Error,
    #[serde(alias = "WARNING", alias = "warning", alias = "Warn", alias = "WARN", alias = "warn")]
    Warning,
    #[serde(alias = "INFO", alias = "info")]
    Info,
    #[serde(alias = "DEBUG", alias = "debug")]
    Debug,
    #[serde(alias = "TRACE", alias = "trace")]
    Trace,
    #[serde(alias = "OFF", alias = "off", alias = "False")]
    Off,
}

/// Firecracker's `Metrics`.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct MetricsSection {
    /// A file or a FIFO that takes the counters: a JSON object on a line each minute, at the end, and when a client
    /// asks for one.
    pub metrics_path: PathBuf,
    /// Whether each object has the VM's name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub emit_id: Option<bool>,
}
