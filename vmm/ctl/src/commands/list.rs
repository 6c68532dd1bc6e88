//! All VMs of this user, and those of services.

use serde_json::{Value, json};
use vmm::error::printable;

use crate::failure::Failure;
use crate::fleet::{Depth, Sight, Silence, survey};
use crate::output::Form;
use crate::report::{self, Column};
use crate::target::live_vms;

/// Lists them.
///
/// # Errors
/// When the registry cannot be read.
pub fn list(form: Form) -> Result<(), Failure> {
    let sights = survey(live_vms()?, Depth::State);
    let all: Vec<Value> = sights.iter().map(document).collect();
    form.show(&all, |_| text(&sights))
}

fn text(sights: &[Sight]) -> String {
    let columns = [
        Column::left("VM"),
        Column::right("PID"),
        Column::left("STATE"),
        Column::right("VCPUS"),
        Column::right("MEMORY"),
        Column::right("RESIDENT"),
        Column::right("UPTIME"),
    ];
    let or_none = |cell: Option<String>| cell.unwrap_or_else(|| "-".to_owned());
    let rows = sights.iter().map(|sight| {
        let answer = sight.answer.as_ref().ok();
        vec![
            printable(&sight.vm.record.name),
            sight.vm.record.pid.to_string(),
            sight.state().to_owned(),
            or_none(answer.and_then(|it| it.vcpus).map(|count| count.to_string())),
            or_none(answer.and_then(|it| it.memory_mib).map(report::mib)),
            or_none(sight.usage.map(|usage| report::size(usage.resident.get()))),
            or_none(sight.vm.age().map(|age| report::seconds(age.as_secs()))),
        ]
    });
    report::columns(&columns, &rows.collect::<Vec<_>>())
}

/// A VM as docs/tesseractl.md has it.
fn document(sight: &Sight) -> Value {
    let record = &sight.vm.record;
    let answer = sight.answer.as_ref().ok();
    let error = match &sight.answer {
        Err(Silence::NoAnswer(reason)) => Some(reason),
        _ => None,
    };
    json!({
        "name": record.name,
        "pid": record.pid,
        "uid": sight.vm.uid(),
        "state": sight.state(),
        "pause_reason": answer.and_then(|it| it.instance.pause_reason.as_deref()),
        "vcpu_count": answer.and_then(|it| it.vcpus),
        "memory_bytes": answer.and_then(|it| it.memory_mib).map(|mib| mib.saturating_mul(1 << 20)),
        "resident_bytes": sight.usage.map(|usage| usage.resident.get()),
        "uptime_seconds": sight.vm.age().map(|age| age.as_secs()),
        "api_sock": record.api_sock,
        "vsock": record.vsock,
        "serial": record.serial,
        "started_by": record.started_by,
        "error": error,
    })
}
