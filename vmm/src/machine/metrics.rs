//! The counters of a machine.

use serde_json::{Value, json};

use super::Machine;

impl Machine {
    /// Counters, each with its unit at the end of its name.
    pub fn metrics(&self) -> Value {
        let mut metrics = json!({
            "vcpu": self.counters.to_json(),
            "memory": { "guest_bytes": self.ram().range().size.get() },
        });
        for (name, counters) in self.devices.metrics() {
            metrics[name] = counters;
        }
        if let Some(tags) = &self.tags {
            metrics["tag_storage"] = tags.metrics();
        }
        if let Some(lazy) = &self.lazy {
            metrics["snapshot"] = json!({
                "unloaded_bytes": lazy.pending().get(),
                "demand_faults_total": lazy.faults(),
                "prefetched_chunks_total": lazy.loaded_ahead(),
            });
        }
        if let Some(template) = self.ram().of_the_template() {
            match self.is_booted {
                true => metrics["memory"]["boot_image_bytes"] = template.get().into(),
                false => metrics["snapshot"] = json!({ "template_bytes": template.get() }),
            }
        }
        metrics
    }
}
