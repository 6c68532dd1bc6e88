//! The table of what the control socket serves, and the way from a request to its answer.

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::http::{Request, Response, Status, quote};
use super::model::{ActionType, InstanceActionInfo, Version, Vm, VmState};
use super::{ControlError, Controller};
use crate::config::Object;
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
}

enum Handler {
    /// Looks at the VM; takes no body.
    Read(fn(&dyn Controller) -> Outcome),
    /// Changes the VM as the body says.
    Write(fn(&mut dyn Controller, &[u8]) -> Outcome),
    /// The same for one of several things of a kind, which the end of the path names.
    WriteOne(fn(&mut dyn Controller, &str, &[u8]) -> Outcome),
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
    patch_one("/drives/{drive_id}", |vm, id, body| done(vm.patch_drive(id, parse(body)?))),
    patch_one("/network-interfaces/{iface_id}", |vm, id, body| {
        done(vm.patch_network_interface(id, parse(body)?))
    }),
    get("/footprint", |vm| show(vm.footprint()?)),
    get("/tag-storage", |vm| show(vm.tag_storage()?)),
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

/// The answer to a request. Never fails: what goes wrong is the answer.
pub(crate) fn answer(vm: &mut dyn Controller, request: &Request) -> Response {
    match dispatch(vm, request) {
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
    ROUTES.iter().any(|route| route.method == method)
}

fn dispatch(vm: &mut dyn Controller, request: &Request) -> Outcome {
    let route = find(request)?;
    match route.handler {
        Handler::Read(_) if !request.body.is_empty() => Err(Fault::UnwantedBody),
        Handler::Read(handler) => handler(vm),
        Handler::Write(handler) => handler(vm, &request.body),
        Handler::WriteOne(handler) => {
            let name = request.path.rsplit('/').next().unwrap_or_default();
            handler(vm, name, &request.body)
        }
    }
}

fn find(request: &Request) -> Result<&'static Route, Fault> {
    let on_path = || ROUTES.iter().filter(|route| route.serves(&request.path));
    if let Some(route) = on_path().find(|route| route.method == request.method) {
        return Ok(route);
    }
    Err(match on_path().next() {
        Some(route) => Fault::Method {
            method: quote(&request.method),
            path: route.path,
            allowed: listed(on_path().map(|route| route.method)),
        },
        None => Fault::Path {
            path: quote(&request.path),
            known: listed(ROUTES.iter().map(|route| route.path)),
        },
    })
}

fn listed(items: impl Iterator<Item = &'static str>) -> String {
    items.collect::<Vec<_>>().join(", ")
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

fn act(vm: &mut dyn Controller, action: InstanceActionInfo) -> Outcome {
    match action.action_type {
        ActionType::SendCtrlAltDel => vm.press_power_key()?,
        ActionType::Stop => vm.stop()?,
        ActionType::InstanceStart => {
            return Err(Fault::Unsupported(
                "the VM is already started: tessera run starts it; \
                 PATCH /vm with {\"state\": \"Resumed\"} resumes a paused one",
            ));
        }
        ActionType::FlushMetrics => {
            return Err(Fault::Unsupported(
                "metrics are not written to a file; read them with GET /metrics",
            ));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests;
