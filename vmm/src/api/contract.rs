//! `resources/openapi.yaml` as a judge: what it describes, and whether a body is what it says.
//!
//! Only the vocabulary that the file uses is understood; a word beyond it fails the test rather
//! than passing unchecked.
#![allow(clippy::unwrap_used)]

use saphyr::{LoadableYamlNode, Scalar, Yaml};
use serde_json::{Map, Value};

/// The parsed description.
pub(crate) struct Contract {
    root: Value,
}

impl Contract {
    pub(crate) fn load() -> Self {
        let text = include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/../resources/openapi.yaml"));
        let documents = Yaml::load_from_str(text).unwrap();
        let root = json(&documents[0]);
        Self { root }
    }

    pub(crate) fn root(&self) -> &Value {
        &self.root
    }

    /// Every (METHOD, path) described.
    pub(crate) fn operations(&self) -> Vec<(String, String)> {
        let paths = self.root["paths"].as_object().unwrap();
        let mut operations = Vec::new();
        for (path, methods) in paths {
            for method in methods.as_object().unwrap().keys() {
                operations.push((method.to_uppercase(), path.clone()));
            }
        }
        operations.sort();
        operations
    }

    /// The statuses with which an operation may be answered.
    pub(crate) fn statuses(&self, method: &str, path: &str) -> Vec<u16> {
        let responses = &self.root["paths"][path][method.to_lowercase()]["responses"];
        responses.as_object().unwrap().keys().map(|status| status.parse().unwrap()).collect()
    }

    /// The schema of a request body.
    pub(crate) fn request_schema(&self, method: &str, path: &str) -> Option<&Value> {
        let operation = &self.root["paths"][path][method.to_lowercase()];
        let body = self.resolve(operation.get("requestBody")?);
        Some(self.resolve(&body["content"]["application/json"]["schema"]))
    }

    /// Whether the contract allows this answer to this request.
    pub(crate) fn check(
        &self,
        method: &str,
        path: &str,
        status: u16,
        body: Option<&Value>,
    ) -> Result<(), String> {
        let responses = &self.root["paths"][path][method.to_lowercase()]["responses"];
        let response = responses
            .get(status.to_string())
            .ok_or_else(|| format!("{method} {path}: status {status} is not described"))?;
        let response = self.resolve(response);
        match (response.get("content"), body) {
            (None, None) => Ok(()),
            // The log of events is no JSON document.
            (Some(content), None) if content.get("application/x-ndjson").is_some() => Ok(()),
            (Some(content), Some(body)) => {
                let schema = &content["application/json"]["schema"];
                self.validate(schema, body, &format!("{method} {path}"))
            }
            (described, sent) => Err(format!(
                "{method} {path}: body described: {}, sent: {}",
                described.is_some(),
                sent.is_some()
            )),
        }
    }

    /// Follows `$ref`.
    pub(crate) fn resolve<'a>(&'a self, value: &'a Value) -> &'a Value {
        let Some(reference) = value.get("$ref") else {
            return value;
        };
        let pointer = reference.as_str().unwrap().strip_prefix('#').unwrap();
        self.root.pointer(pointer).unwrap()
    }

    fn validate(&self, schema: &Value, value: &Value, at: &str) -> Result<(), String> {
        let schema = self.resolve(schema);
        for (word, rule) in schema.as_object().unwrap() {
            let holds = match word.as_str() {
                "type" => {
                    let null =
                        value.is_null() && schema.get("nullable") == Some(&Value::Bool(true));
                    null || is_of_type(value, rule.as_str().unwrap())
                }
                "enum" => rule.as_array().unwrap().contains(value),
                "minimum" => value.is_null() || value.as_f64() >= rule.as_f64(),
                "maximum" => value.is_null() || value.as_f64() <= rule.as_f64(),
                "required" => {
                    value.is_null()
                        || rule
                            .as_array()
                            .unwrap()
                            .iter()
                            .all(|name| value.get(name.as_str().unwrap()).is_some())
                }
                "oneOf" => {
                    let fits = |schema| self.validate(schema, value, at).is_ok();
                    rule.as_array().unwrap().iter().filter(|s| fits(s)).count() == 1
                }
                "properties" => {
                    for (name, schema) in rule.as_object().unwrap() {
                        if let Some(field) = value.get(name) {
                            self.validate(schema, field, &format!("{at}.{name}"))?;
                        }
                    }
                    true
                }
                "additionalProperties" => self.validate_rest(schema, rule, value, at)?,
                "items" => {
                    for (index, item) in value.as_array().into_iter().flatten().enumerate() {
                        self.validate(rule, item, &format!("{at}[{index}]"))?;
                    }
                    true
                }
                "description" | "example" | "nullable" | "x-tessera" => true,
                unknown => return Err(format!("{at}: the test does not know {unknown:?}")),
            };
            if !holds {
                return Err(format!("{at}: {value} breaks {word}: {rule}"));
            }
        }
        Ok(())
    }

    fn validate_rest(
        &self,
        schema: &Value,
        rule: &Value,
        value: &Value,
        at: &str,
    ) -> Result<bool, String> {
        let known = |name: &str| schema["properties"].get(name).is_some();
        let fields = value.as_object().into_iter().flatten();
        for (name, field) in fields.filter(|(name, _)| !known(name)) {
            match rule {
                Value::Bool(allowed) if !allowed => return Ok(false),
                Value::Bool(_) => {}
                rule => self.validate(rule, field, &format!("{at}.{name}"))?,
            }
        }
        Ok(true)
    }
}

fn is_of_type(value: &Value, name: &str) -> bool {
    match name {
        "object" => value.is_object(),
        "array" => value.is_array(),
        "string" => value.is_string(),
        "boolean" => value.is_boolean(),
        "number" => value.is_number(),
        "integer" => value.is_i64() || value.is_u64(),
        _ => false,
    }
}

fn json(yaml: &Yaml<'_>) -> Value {
    match yaml {
        Yaml::Value(Scalar::String(text)) => Value::from(text.as_ref()),
        Yaml::Value(Scalar::Integer(number)) => Value::from(*number),
        Yaml::Value(Scalar::Boolean(flag)) => Value::from(*flag),
        Yaml::Sequence(items) => items.iter().map(json).collect(),
        Yaml::Mapping(fields) => {
            let entry = |(key, value): (&Yaml<'_>, &Yaml<'_>)| {
                (key.as_str().unwrap().to_owned(), json(value))
            };
            Value::Object(fields.iter().map(entry).collect::<Map<_, _>>())
        }
        other => panic!("resources/openapi.yaml uses {other:?}, which this test does not read"),
    }
}

#[cfg(test)]
mod tests;
