//! The server against `resources/openapi.yaml`, in both directions.
#![allow(clippy::unwrap_used)]

use serde_json::{Map, Value, json};

use super::Contract;
use crate::api::fake::{Failure, FakeBalloon, FakeVm};
use crate::api::http::{self, Request, Response};
use crate::api::model::{
    DriverState, FIRECRACKER_API_VERSION, GuestStats, OnExhausted, ReportingState, State,
    TESSERA_VERSION, TagStorageMode,
};
use crate::api::routes::{Answer, ROUTES, answer};
use crate::api::server;
use crate::backends::balloon::{AutoReason, AutoState};

fn ask(method: &str, path: &str, body: &str) -> (u16, Option<Value>) {
    ask_of(&mut vm_for(method, path), method, path, body)
}

/// Whether a request is for a VM that has not started.
fn configures(method: &str, path: &str) -> bool {
    let acts = ["/actions", "/snapshot/create", "/snapshot/confirm"].contains(&path);
    method == "PUT" && !acts || (method, path) == ("PATCH", "/machine-config")
}

/// A VM in the state in which it takes a request.
fn vm_for(method: &str, path: &str) -> FakeVm {
    let state = match path {
        "/snapshot/create" => State::Paused,
        _ if configures(method, path) => State::NotStarted,
        _ => State::Running,
    };
    FakeVm { state, ..FakeVm::default() }
}

fn ask_of(vm: &mut FakeVm, method: &str, path: &str, body: &str) -> (u16, Option<Value>) {
    let request = Request {
        method: method.to_owned(),
        path: path.replace("{drive_id}", "root").replace("{iface_id}", "eth0"),
        body: body.as_bytes().to_vec(),
        keep_alive: true,
        wants_text: false,
        takes_chunks: true,
    };
    match answer(vm, &request) {
        Answer::Response(Response { status, body }) => (status.code(), body),
        Answer::Events => (200, None),
    }
}

#[test]
fn description_and_route_table_name_the_same_operations() {
    let described = Contract::load().operations();

    let mut served: Vec<_> =
        ROUTES.iter().map(|route| (route.method.to_owned(), route.path.to_owned())).collect();
    served.sort();

    assert_eq!(described, served);
}

#[test]
fn description_states_the_versions_of_the_program() {
    let contract = Contract::load();

    let info = &contract.root()["info"];

    assert_eq!(contract.root()["openapi"], "3.0.3");
    assert_eq!(info["version"], TESSERA_VERSION);
    let text = info["description"].as_str().unwrap();
    assert!(text.contains(FIRECRACKER_API_VERSION));
}

#[test]
fn description_states_the_bounds_of_the_program() {
    let contract = Contract::load();

    let text = contract.root()["info"]["description"].as_str().unwrap();

    assert!(text.contains(&format!("{} KiB", http::MAX_HEAD >> 10)));
    assert!(text.contains(&format!("{} bytes", http::MAX_BODY)));
    assert_eq!(server::MAX_CONNECTIONS, 10);
    assert!(text.contains("Ten clients"));
}

#[test]
fn every_read_answers_200_with_the_body_described() {
    let contract = Contract::load();

    for (method, path) in contract.operations() {
        if method == "GET" {
            let (status, body) = ask(&method, &path, "");
            assert_eq!(status, 200, "{path}");
            contract.check(&method, &path, status, body.as_ref()).unwrap();
        }
    }
}

/// A body that a request takes; reads have none.
fn body_for(contract: &Contract, method: &str, path: &str) -> String {
    let Some(schema) = contract.request_schema(method, path) else { return String::new() };
    let mut body = required(contract, schema);
    let last = schema["properties"].as_object().and_then(|fields| fields.iter().next_back());
    if let (true, Some((field, rule))) = (body.is_empty(), last) {
        body.insert(field.clone(), named(contract.resolve(rule)).pop().unwrap());
    }
    Value::Object(body).to_string()
}

/// The fields that a body must have, with values for them; or those of its example.
fn required(contract: &Contract, schema: &Value) -> Map<String, Value> {
    if let Some(example) = schema.get("example") {
        return example.as_object().unwrap().clone();
    }
    let fields = schema.get("required").and_then(Value::as_array).into_iter().flatten();
    let value = |field: &str| named(contract.resolve(&schema["properties"][field])).pop().unwrap();
    fields
        .map(|field| field.as_str().unwrap())
        .map(|field| (field.to_owned(), value(field)))
        .collect()
}

#[test]
fn what_fails_in_the_vmm_is_answered_with_a_status_of_its_own_where_described_and_only_there() {
    let contract = Contract::load();

    for (failure, status) in [(Failure::Lasting, 500), (Failure::ForNow, 503)] {
        let answering = contract.operations().into_iter().filter(|(method, path)| {
            let mut vm = FakeVm { failure: Some(failure), ..vm_for(method, path) };
            let body = body_for(&contract, method, path);
            let (answered, answer) = ask_of(&mut vm, method, path, &body);
            contract.check(method, path, answered, answer.as_ref()).unwrap();
            let refused = answered == 400 && configures(method, path);
            assert!(answered < 300 || answered == status || refused, "{method} {path}: {answered}");
            answered == status
        });
        let answering: Vec<_> = answering.collect();

        let described = contract
            .operations()
            .into_iter()
            .filter(|(method, path)| contract.statuses(method, path).contains(&status));
        assert_eq!(answering, described.collect::<Vec<_>>(), "{status}");
        assert!(answering.contains(&("GET".to_owned(), "/footprint".to_owned())));
    }
}

/// Every value that a schema names: those of an enumeration, both of a switch, both ends of a range, an example.
fn named(rule: &Value) -> Vec<Value> {
    match (rule.get("enum"), rule["type"].as_str()) {
        (Some(values), _) => values.as_array().unwrap().clone(),
        (None, Some("string" | "object")) if rule.get("example").is_some() => {
            vec![rule["example"].clone()]
        }
        (None, Some("string")) => vec![json!("text")],
        (None, Some("array")) => vec![json!([])],
        (None, Some("object")) => vec![json!({})],
        (None, Some("boolean")) => vec![json!(false), json!(true)],
        (None, Some("integer")) => {
            ["minimum", "maximum"].iter().filter_map(|end| rule.get(*end).cloned()).collect()
        }
        other => panic!("a change takes {other:?}, for which this test has no values"),
    }
}

/// Values of other types than the schema's, and those just beyond its range.
fn beyond(rule: &Value) -> Vec<Value> {
    let mut values = vec![json!([]), json!({}), json!(1.5), json!("no such value")];
    if rule.get("nullable").is_none() {
        values.push(json!(null));
    }
    match rule["type"].as_str() {
        Some("string") if rule.get("enum").is_none() => values.retain(|value| !value.is_string()),
        Some("object") => values.retain(|value| !value.is_object()),
        Some("array") => values.retain(|value| !value.is_array()),
        Some("integer") => {
            let past = |end: &str, by| rule.get(end).map(|end| json!(end.as_i64().unwrap() + by));
            values.extend([past("minimum", -1), past("maximum", 1)].into_iter().flatten());
            values.push(json!(true));
        }
        _ => values.push(json!(1)),
    }
    values
}

/// Every field of every change that is described: method, path, field and its rule.
fn fields_of_changes(contract: &Contract) -> Vec<(String, String, String, Value)> {
    let mut fields = Vec::new();
    for (method, path) in contract.operations() {
        let Some(schema) = contract.request_schema(&method, &path) else {
            continue;
        };
        for (field, rule) in schema["properties"].as_object().into_iter().flatten() {
            let rule = contract.resolve(rule).clone();
            fields.push((method.clone(), path.clone(), field.clone(), rule));
        }
    }
    fields
}

/// A body in which a field has this value.
fn with(contract: &Contract, method: &str, path: &str, field: &str, value: Value) -> String {
    let mut body = required(contract, contract.request_schema(method, path).unwrap());
    body.insert(field.to_owned(), value);
    Value::Object(body).to_string()
}

#[test]
fn every_change_answers_each_value_described_as_described() {
    let contract = Contract::load();

    for (method, path, field, rule) in fields_of_changes(&contract) {
        for value in named(&rule) {
            let body = with(&contract, &method, &path, &field, value);
            let (status, answer) = ask(&method, &path, &body);
            contract.check(&method, &path, status, answer.as_ref()).unwrap();
            let message = answer.map(|fault| fault["fault_message"].to_string());
            assert!(
                !message.unwrap_or_default().contains("not what this request takes"),
                "{path} does not know {body}"
            );
        }
    }
}

#[test]
fn every_change_refuses_a_body_beyond_its_schema() {
    let contract = Contract::load();

    for (method, path, field, rule) in fields_of_changes(&contract) {
        let known = named(&rule).swap_remove(0);
        let valid = with(&contract, &method, &path, &field, known);
        let more = valid.replacen('{', "{\"more\":1,", 1);
        let mut bodies = vec![
            String::new(),
            "null".to_owned(),
            "[]".to_owned(),
            "{".to_owned(),
            more,
            format!("{valid} {{}}"),
        ];
        let schema = contract.request_schema(&method, &path).unwrap();
        if schema.get("required").is_some() || schema.get("minProperties").is_some() {
            bodies.push("{}".to_owned());
        }
        let beyond = beyond(&rule).into_iter();
        bodies.extend(beyond.map(|value| with(&contract, &method, &path, &field, value)));
        for body in bodies {
            let (status, answer) = ask(&method, &path, &body);
            assert_eq!(status, 400, "{method} {path} took {body:?}");
            contract.check(&method, &path, status, answer.as_ref()).unwrap();
        }
    }
}

#[test]
fn every_answer_that_a_balloon_can_give_is_described() {
    let contract = Contract::load();
    let get = |balloon: Option<FakeBalloon>, path: &str| {
        let mut vm = FakeVm { balloon, ..FakeVm::default() };
        let (status, body) = ask_of(&mut vm, "GET", path, "");
        contract.check("GET", path, status, body.as_ref()).unwrap();
        status
    };
    let silent = FakeBalloon { statistics: GuestStats::default(), ..FakeBalloon::default() };
    let off = FakeBalloon { interval: 0, reporting: Some(false), ..FakeBalloon::default() };
    let auto = FakeBalloon { auto: true, ..FakeBalloon::default() };

    let statuses = ["/balloon", "/balloon/statistics", "/footprint"]
        .map(|path| [Some(silent), Some(off), Some(auto), None].map(|balloon| get(balloon, path)));

    assert_eq!(statuses, [[200, 200, 200, 400], [200, 400, 200, 400], [200, 200, 200, 200]]);
}

#[test]
fn every_answer_on_tag_storage_is_described() {
    let contract = Contract::load();
    let schemas = &contract.root()["components"]["schemas"];
    let modes = [TagStorageMode::Off, TagStorageMode::Strict, TagStorageMode::Demand];
    let actions = [OnExhausted::Wait, OnExhausted::Pause, OnExhausted::Kill];
    for tags in [false, true] {
        let mut vm = FakeVm { tags, ..FakeVm::default() };
        let (status, body) = ask_of(&mut vm, "GET", "/tag-storage", "");
        assert_eq!(status, 200);
        contract.check("GET", "/tag-storage", status, body.as_ref()).unwrap();
    }

    for schema in ["TagStorage", "TagStorageConfiguration"] {
        let fields = &schemas[schema]["properties"];
        assert_eq!(fields["mode"]["enum"], json!(modes));
        assert_eq!(fields["on_exhausted"]["enum"], json!(actions));
    }
    assert_eq!(json!(modes), json!(modes.map(|mode| mode.to_string())));
    assert_eq!(json!(actions), json!(actions.map(|action| action.to_string())));
}

#[test]
fn every_word_for_the_balloon_is_described() {
    let contract = Contract::load();
    let schemas = &contract.root()["components"]["schemas"];
    let drivers = [DriverState::Absent, DriverState::Active, DriverState::NeedsReset];
    let states = [ReportingState::On, ReportingState::Off, ReportingState::Ineffective];

    assert_eq!(schemas["Balloon"]["properties"]["driver"]["enum"], json!(drivers));
    assert_eq!(schemas["BalloonReporting"]["properties"]["state"]["enum"], json!(states));
    let auto = &schemas["BalloonAuto"]["properties"];
    let chosen = [AutoState::Settled, AutoState::Taking, AutoState::Returning];
    let reasons = [
        AutoReason::AtEase,
        AutoReason::HostShort,
        AutoReason::HostStalls,
        AutoReason::Growth,
        AutoReason::GuestShort,
        AutoReason::Balanced,
        AutoReason::AtBottom,
        AutoReason::Refused,
        AutoReason::Others,
        AutoReason::Silent,
    ];
    assert_eq!(auto["state"]["enum"], json!(chosen.map(AutoState::as_str)));
    assert_eq!(auto["reason"]["enum"], json!(reasons.map(AutoReason::as_str)));
    assert_eq!(json!(drivers), json!(drivers.map(|driver| driver.to_string())));
    assert_eq!(json!(states), json!(states.map(ReportingState::as_str)));
}

#[test]
fn the_configuration_of_any_vm_is_described() {
    let contract = Contract::load();
    let mut args = crate::config::RunArgs { kernel: Some("Image".into()), ..Default::default() };
    for without in [false, true] {
        args.no_balloon = without;
        args.rng = !without;
        args.vsock = (!without).then(|| "v.sock,cid=4".parse().unwrap());
        args.tag_storage = without.then_some(TagStorageMode::Demand);
        args.tag_max = without.then_some(arch::units::Bytes::mib(1));
        let config = args.merge().unwrap();
        let spec = crate::spec::Spec::new(config, args.command_line_only()).unwrap();
        let body = serde_json::to_value(spec.to_config()).unwrap();
        contract.check("GET", "/vm/config", 200, Some(&body)).unwrap();
        contract.check("GET", "/machine-config", 200, body.get("machine-config")).unwrap();
    }
}

#[test]
fn every_other_method_is_refused_naming_those_that_are_not() {
    let operations = Contract::load().operations();

    for (_, path) in &operations {
        for method in ["GET", "PUT", "PATCH", "POST", "DELETE", "HEAD", "get"] {
            if operations.contains(&(method.to_owned(), path.clone())) {
                continue;
            }
            let (status, answer) = ask(method, path, "");
            let message = answer.unwrap()["fault_message"].to_string();
            assert_eq!(status, 400, "{method} {path}");
            for (allowed, _) in operations.iter().filter(|(_, other)| other == path) {
                assert!(message.contains(allowed), "{message}");
            }
        }
    }
}
