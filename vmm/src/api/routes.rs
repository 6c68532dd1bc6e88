//! The table of what the control socket serves, and the way from a request to its answer.

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::http::{Request, Response, Status, quote};
use super::model::{
    ActionType, DriveUpdate, InstanceActionInfo, NetworkInterfaceUpdate, Version, Vm, VmState,
};
use super::{ControlError, Controller};
use crate::config::{ConfigChange, DriveSection, NetworkInterfaceSection, Object};
use crate::prometheus::Text;

/// A body (200), or none (204), or a fault (400 and above).
type Outcome = Result<Option<Value>, Fault>;

/// One method of one path.
pub(crate) struct Route {
    pub(crate) method: &'static str,
    pub(crate) path: &'static str,
    handler: Handler,
}

impl Route {
    /// Whether a path is this one: `{...}` at its end stands for any name.
    fn serves(&self, path: &str) -> bool {
        match self.path.split_once('{') {
            None => self.path == path,
            Some((before, _)) => path
                .strip_prefix(before)
                .is_some_and(|name| !name.is_empty() && !name.contains('/')),
        }
    }

    /// Whether it serves one of several devices of a kind.
    fn is_of_a_device(&self) -> bool {
        matches!(self.handler, Handler::WriteOne(_))
    }

    /// Whether a path is that of this section with something behind it, which is ignored as in Firecracker: some
    /// clients put a device's name there.
    fn serves_below(&self, path: &str) -> bool {
        matches!(self.handler, Handler::Configure(_)) && is_below(path, self.path)
    }
}

/// Whether a path is another one with something behind it.
fn is_below(path: &str, other: &str) -> bool {
    path.strip_prefix(other).is_some_and(|rest| rest.starts_with('/'))
}

enum Handler {
    /// Looks at the VM; takes no body.
    Read(fn(&dyn Controller) -> Outcome),
    /// Changes the VM as the body says.
    Write(fn(&mut dyn Controller, &[u8]) -> Outcome),
    /// The same for one of several things of a kind, which the end of the path names.
    WriteOne(fn(&mut dyn Controller, &str, &[u8]) -> Outcome),
    /// Replaces a section of the configuration before the start.
    Configure(fn(&[u8]) -> Result<ConfigChange, Fault>),
    /// Follows the log of events.
    Follow,
}

/// The one resource that is served as text, too.
const METRICS: &str = "/metrics";

/// Everything that is served. A resource is added by one line here, one method of [`Controller`]
/// and its description in `resources/openapi.yaml`.
pub(crate) const ROUTES: &[Route] = &[
    get("/", |vm| show(vm.instance())),
    get("/version", |_| show(Version::current())),
    get("/vm/config", |vm| show(vm.vm_config())),
    get("/machine-config", |vm| show(vm.machine_config())),
    get(METRICS, |vm| show(vm.metrics())),
    get("/balloon", |vm| show(vm.balloon()?)),
    patch("/balloon", |vm, body| done(vm.patch_balloon(parse(body)?))),
    get("/balloon/statistics", |vm| show(vm.balloon_statistics()?)),
    patch("/balloon/statistics", |vm, body| done(vm.patch_balloon_statistics(parse(body)?))),
    patch_one("/drives/{drive_id}", |vm, id, body| patch_drive(vm, id, parse(body)?)),
    patch_one("/network-interfaces/{iface_id}", |vm, id, body| {
        patch_network_interface(vm, id, parse(body)?)
    }),
    section("PUT", "/boot-source", |body| Ok(ConfigChange::BootSource(parse(body)?))),
    section("PUT", "/machine-config", |body| Ok(ConfigChange::MachineConfig(parse(body)?))),
    section("PATCH", "/machine-config", |body| Ok(ConfigChange::MachineConfigUpdate(parse(body)?))),
    put_one("/drives/{drive_id}", |vm, id, body| put_drive(vm, id, parse(body)?)),
    put_one("/network-interfaces/{iface_id}", |vm, id, body| {
        put_network_interface(vm, id, parse(body)?)
    }),
    section("PUT", "/vsock", |body| Ok(ConfigChange::Vsock(parse(body)?))),
    section("PUT", "/balloon", |body| Ok(ConfigChange::Balloon(parse(body)?))),
    section("PUT", "/entropy", |body| Ok(ConfigChange::Entropy(parse(body)?))),
    section("PUT", "/serial", |body| Ok(ConfigChange::Serial(parse(body)?))),
    section("PUT", "/logger", |body| Ok(ConfigChange::Logger(parse(body)?))),
    section("PUT", "/metrics", |body| Ok(ConfigChange::Metrics(parse(body)?))),
    section("PUT", "/mte", |body| Ok(ConfigChange::Mte(parse(body)?))),
    section("PUT", "/tag-storage", |body| Ok(ConfigChange::TagStorage(parse(body)?))),
    Route { method: "GET", path: "/events", handler: Handler::Follow },
    get("/footprint", |vm| show(vm.footprint()?)),
    get("/tag-storage", |vm| show(vm.tag_storage()?)),
    put("/snapshot/create", |vm, body| done(vm.create_snapshot(parse(body)?))),
    put("/snapshot/confirm", |vm, body| done(vm.confirm_snapshot(parse(body)?))),
    put("/snapshot/load", |vm, body| done(vm.load_snapshot(parse(body)?))),
    patch("/vm", |vm, body| change_state(vm, parse(body)?)),
    put("/actions", |vm, body| act(vm, parse(body)?)),
];

const fn get(path: &'static str, handler: fn(&dyn Controller) -> Outcome) -> Route {
    Route { method: "GET", path, handler: Handler::Read(handler) }
}

const fn put(path: &'static str, handler: fn(&mut dyn Controller, &[u8]) -> Outcome) -> Route {
    Route { method: "PUT", path, handler: Handler::Write(handler) }
}

const fn patch(path: &'static str, handler: fn(&mut dyn Controller, &[u8]) -> Outcome) -> Route {
    Route { method: "PATCH", path, handler: Handler::Write(handler) }
}

const fn put_one(
    path: &'static str,
    handler: fn(&mut dyn Controller, &str, &[u8]) -> Outcome,
) -> Route {
    Route { method: "PUT", path, handler: Handler::WriteOne(handler) }
}

const fn section(
    method: &'static str,
    path: &'static str,
    parse: fn(&[u8]) -> Result<ConfigChange, Fault>,
) -> Route {
    Route { method, path, handler: Handler::Configure(parse) }
}

/// What Firecracker serves and this VMM does not have, by the beginning of its path.
const LACKING: &[(&str, &str)] = &[
    (
        "/mmds",
        "there is no metadata service (MMDS): give the guest what it needs on a disk or over vsock",
    ),
    ("/cpu-config", "there are no CPU templates: the guest's CPU is the host's"),
    ("/pmem", "there are no persistent memory devices: use a disk"),
    (
        "/hotplug",
        "memory cannot be added to a guest: start it with more, and take it back with the balloon",
    ),
    (
        "/balloon/hinting",
        "there is no free page hinting: page reporting gives free memory back by itself",
    ),
];

/// What Firecracker does to a device of a running VM and this VMM does not, whatever the device.
const UNPLUGS: &str = "DELETE";
/// Why not.
const NOTHING_IS_UNPLUGGED: &str = "nothing is unplugged: PUT replaces a device of this name before the start, PATCH \
     changes it after the start, and a running VM keeps it to its end";

const fn patch_one(
    path: &'static str,
    handler: fn(&mut dyn Controller, &str, &[u8]) -> Outcome,
) -> Route {
    Route { method: "PATCH", path, handler: Handler::WriteOne(handler) }
}

/// Why a well-framed request is not served.
#[derive(Debug, thiserror::Error)]
enum Fault {
    #[error("nothing is served at {path:?}; the paths are {known}")]
    Path { path: String, known: String },
    #[error("{path} does not take {method}; it takes {allowed}")]
    Method { method: String, path: &'static str, allowed: String },
    #[error("a GET request has no body; remove it")]
    UnwantedBody,
    #[error("the request needs a JSON body; resources/openapi.yaml describes it")]
    MissingBody,
    #[error("the body is not what this request takes: {}", quote(&.0.to_string()))]
    Body(serde_json::Error),
    #[error("the path names the {kind} '{path}' and the body '{body}': name the same one")]
    OtherName { kind: &'static str, path: String, body: String },
    #[error("the answer cannot be written as JSON: {0}")]
    Answer(serde_json::Error),
    #[error("{0}")]
    Unsupported(&'static str),
    #[error("{}", crate::error::chain(.0))]
    Control(ControlError),
}

impl Fault {
    /// 400, as in Firecracker, for what the client can mend; 500 or 503 for what it cannot.
    fn status(&self) -> Status {
        match self {
            Self::Answer(_) | Self::Control(ControlError::Failed { .. }) => {
                Status::InternalServerError
            }
            Self::Control(ControlError::Unavailable { .. }) => Status::ServiceUnavailable,
            Self::Path { .. }
            | Self::Method { .. }
            | Self::UnwantedBody
            | Self::MissingBody
            | Self::Body(_)
            | Self::OtherName { .. }
            | Self::Unsupported(_)
            | Self::Control(ControlError::Refused(_)) => Status::BadRequest,
        }
    }
}

impl From<ControlError> for Fault {
    fn from(error: ControlError) -> Self {
        Self::Control(error)
    }
}

/// What a request gets.
#[derive(Debug)]
pub(crate) enum Answer {
    /// One answer.
    Response(Response),
    /// The log of events, from its beginning on.
    Events,
}

/// The answer to a request. Never fails: what goes wrong is the answer.
pub(crate) fn answer(vm: &mut dyn Controller, request: &Request) -> Answer {
    match find(request) {
        Ok(Route { handler: Handler::Follow, .. }) if request.body.is_empty() => Answer::Events,
        route => Answer::Response(respond(vm, request, route)),
    }
}

fn respond(
    vm: &mut dyn Controller,
    request: &Request,
    route: Result<&'static Route, Fault>,
) -> Response {
    match route.and_then(|route| dispatch(vm, request, route)) {
        Ok(Some(figures)) if request.wants_text && request.path == METRICS => {
            let mut text = Text::default();
            text.add_all(&figures, &[("vm", &vm.instance().id)]);
            Response::success(Some(Value::String(text.finish())))
        }
        Ok(body) => Response::success(body),
        Err(fault) => Response::fault(fault.status(), fault.to_string()),
    }
}

/// Some path takes this method. A client of another one may frame the answer in its own way
/// (that to HEAD has no body), so its connection ends with the answer.
pub(crate) fn knows_method(method: &str) -> bool {
    method == UNPLUGS || ROUTES.iter().any(|route| route.method == method)
}

fn dispatch(vm: &mut dyn Controller, request: &Request, route: &Route) -> Outcome {
    match route.handler {
        Handler::Read(_) | Handler::Follow if !request.body.is_empty() => Err(Fault::UnwantedBody),
        Handler::Read(handler) => handler(vm),
        Handler::Follow => Ok(None),
        Handler::Write(handler) => handler(vm, &request.body),
        Handler::Configure(parse) => done(vm.configure(parse(&request.body)?)),
        Handler::WriteOne(handler) => {
            let name = request.path.rsplit('/').next().unwrap_or_default();
            handler(vm, name, &request.body)
        }
    }
}

fn find(request: &Request) -> Result<&'static Route, Fault> {
    let path = request.path.as_str();
    let exact = ROUTES.iter().any(|route| route.serves(path));
    let on_path = || {
        ROUTES.iter().filter(move |route| match exact {
            true => route.serves(path),
            false => route.serves_below(path),
        })
    };
    if let Some(route) = on_path().find(|route| route.method == request.method) {
        return Ok(route);
    }
    let lacks = |(lacking, _): &&(&str, &str)| path == *lacking || is_below(path, lacking);
    if let Some((_, why)) = LACKING.iter().find(lacks) {
        return Err(Fault::Unsupported(why));
    }
    if request.method == UNPLUGS && on_path().any(Route::is_of_a_device) {
        return Err(Fault::Unsupported(NOTHING_IS_UNPLUGGED));
    }
    Err(match on_path().next() {
        Some(route) => Fault::Method {
            method: quote(&request.method),
            path: route.path,
            allowed: listed(on_path().map(|route| route.method)),
        },
        None => {
            Fault::Path { path: quote(path), known: listed(ROUTES.iter().map(|route| route.path)) }
        }
    })
}

fn listed(items: impl Iterator<Item = &'static str>) -> String {
    let mut items: Vec<_> = items.collect();
    // The methods of a path may stand at several places.
    items.sort_unstable();
    items.dedup();
    items.join(", ")
}

fn show(answer: impl Serialize) -> Outcome {
    serde_json::to_value(answer).map(Some).map_err(Fault::Answer)
}

fn done(result: Result<(), ControlError>) -> Outcome {
    result?;
    Ok(None)
}

fn parse<T: DeserializeOwned>(body: &[u8]) -> Result<T, Fault> {
    if body.is_empty() {
        return Err(Fault::MissingBody);
    }
    serde_json::from_slice(body).map(|Object(body)| body).map_err(Fault::Body)
}

fn change_state(vm: &mut dyn Controller, change: Vm) -> Outcome {
    match change.state {
        VmState::Paused => vm.pause()?,
        VmState::Resumed => vm.resume()?,
    }
    Ok(None)
}

fn put_drive(vm: &mut dyn Controller, id: &str, drive: DriveSection) -> Outcome {
    same_name("disk", id, &drive.drive_id)?;
    done(vm.configure(ConfigChange::Drive(drive)))
}

fn put_network_interface(
    vm: &mut dyn Controller,
    id: &str,
    interface: NetworkInterfaceSection,
) -> Outcome {
    same_name("network interface", id, &interface.iface_id)?;
    done(vm.configure(ConfigChange::NetworkInterface(interface)))
}

fn patch_drive(vm: &mut dyn Controller, id: &str, update: DriveUpdate) -> Outcome {
    same_name("disk", id, &update.drive_id)?;
    done(vm.patch_drive(update))
}

fn patch_network_interface(
    vm: &mut dyn Controller,
    id: &str,
    update: NetworkInterfaceUpdate,
) -> Outcome {
    same_name("network interface", id, &update.iface_id)?;
    done(vm.patch_network_interface(update))
}

/// Refuses a request whose body is for another thing of a kind than its path.
fn same_name(kind: &'static str, id: &str, body: &str) -> Result<(), Fault> {
    if id == body {
        return Ok(());
    }
    Err(Fault::OtherName { kind, path: quote(id), body: quote(body) })
}

fn act(vm: &mut dyn Controller, action: InstanceActionInfo) -> Outcome {
    match action.action_type {
        ActionType::SendCtrlAltDel => vm.press_power_key()?,
        ActionType::Stop => vm.stop()?,
        ActionType::InstanceStart => vm.start()?,
        ActionType::FlushMetrics => vm.flush_metrics()?,
    }
    Ok(None)
}

#[cfg(test)]
mod tests;
