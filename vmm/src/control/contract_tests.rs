//! The server against `resources/openapi.yaml`, in both directions.
#![allow(clippy::unwrap_used)]

use serde_json::{Value, json};

use super::contract::Contract;
use super::fake::FakeVm;
use super::http::{Request, Response};
use super::model::{FIRECRACKER_API_VERSION, TESSERA_VERSION};
use super::routes::{ROUTES, answer};

fn ask(method: &str, path: &str, body: &str) -> (u16, Option<Value>) {
    let request = Request {
        method: method.to_owned(),
        path: path.to_owned(),
        body: body.as_bytes().to_vec(),
        keep_alive: true,
    };
    let Response { status, body } = answer(&mut FakeVm::default(), &request);
    (status.code(), body)
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

    assert!(text.contains(&format!("{} KiB", super::http::MAX_HEAD >> 10)));
    assert!(text.contains(&format!("{} bytes", super::http::MAX_BODY)));
    assert_eq!(super::server::MAX_CONNECTIONS, 10);
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

#[test]
fn every_change_answers_each_value_described_as_described() {
    let contract = Contract::load();

    for (method, path) in contract.operations() {
        let Some(schema) = contract.request_schema(&method, &path) else {
            continue;
        };
        for (field, rule) in schema["properties"].as_object().unwrap() {
            for value in contract.resolve(rule)["enum"].as_array().unwrap() {
                let body = json!({ field: value }).to_string();
                let (status, answer) = ask(&method, &path, &body);
                contract.check(&method, &path, status, answer.as_ref()).unwrap();
                let message = answer.map(|fault| fault["fault_message"].to_string());
                assert!(
                    !message.unwrap_or_default().contains("unknown variant"),
                    "{path} does not know {value}"
                );
            }
        }
    }
}

#[test]
fn every_change_refuses_a_body_beyond_its_schema() {
    let contract = Contract::load();

    for (method, path) in contract.operations() {
        let Some(schema) = contract.request_schema(&method, &path) else {
            continue;
        };
        let field = schema["required"][0].as_str().unwrap();
        let known = &schema["properties"][field]["enum"][0];
        for body in [
            String::new(),
            "{}".to_owned(),
            "null".to_owned(),
            "[]".to_owned(),
            "{".to_owned(),
            json!({ field: known, "more": 1 }).to_string(),
            json!({ field: 1 }).to_string(),
            json!({ field: "no such value" }).to_string(),
            format!("{} {{}}", json!({ field: known })),
        ] {
            let (status, answer) = ask(&method, &path, &body);
            assert_eq!(status, 400, "{method} {path} took {body:?}");
            contract.check(&method, &path, status, answer.as_ref()).unwrap();
        }
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
