//! Answers held against the OpenAPI document: the part of JSON Schema that the document uses, no more.

use crate::exchange::Answer;
use serde_json::Value;

/// Keywords that say nothing which is checked here.
const UNCHECKED: &[&str] = &["description", "format", "pattern", "default", "example"];

/// The document.
pub(crate) struct Document(pub(crate) Value);

impl Document {
    /// The documented path that `path` is an instance of, and what the document says of the method there.
    pub(crate) fn operation(&self, method: &str, path: &str) -> Option<(&str, &Value)> {
        let path = path.split('?').next().unwrap_or_default();
        let method = method.to_lowercase();
        let fits = |template: &str| match template.split_once('{') {
            None => template == path,
            Some((before, rest)) => {
                let (name, behind) = rest.split_once('}').expect("a parameter's end");
                let value = path.strip_prefix(before).and_then(|rest| rest.strip_suffix(behind));
                // Only a key may hold slashes.
                value.is_some_and(|value| !value.is_empty() && (name == "key" || !value.contains('/')))
            }
        };
        let paths = self.0["paths"].as_object().expect("paths");
        let found = paths.iter().filter(|(template, item)| fits(template) && item.get(&method).is_some());
        found.max_by_key(|(template, _)| template.len()).map(|(template, item)| (template.as_str(), &item[method.as_str()]))
    }

    /// What is wrong with an answer to a request that the document describes.
    pub(crate) fn faults(&self, method: &str, path: &str, answer: &Answer) -> Vec<String> {
        let mut faults = Vec::new();
        let Some((_, operation)) = self.operation(method, path) else { return vec![format!("{method} {path} is not documented")] };
        let Some(response) = operation["responses"].get(answer.status.to_string()) else {
            return vec![format!("{} is not among the documented statuses", answer.status)];
        };
        let response = self.resolve(response);
        for (name, header) in response["headers"].as_object().into_iter().flatten() {
            let header = self.resolve(header);
            match answer.header(name) {
                Some(value) => self.check(&header["schema"], &Value::from(value), name, &mut faults),
                None if header["required"] == true => faults.push(format!("the header {name} is missing")),
                None => {}
            }
        }
        let is_write = !matches!(method, "GET" | "HEAD");
        if is_write && answer.status >= 400 && answer.header("flotilla-outcome").is_none() {
            faults.push("an error to a write does not say its outcome".to_owned());
        }
        let Some(contents) = response["content"].as_object() else {
            if !answer.body.is_empty() {
                faults.push("it has a body".to_owned());
            }
            return faults;
        };
        let content_type = answer.header("content-type").unwrap_or_default().split(';').next().unwrap_or_default();
        let Some(content) = contents.get(content_type) else {
            faults.push(format!("the content type is {content_type:?}"));
            return faults;
        };
        match content_type {
            "application/json" | "application/problem+json" => match serde_json::from_slice(&answer.body) {
                Ok(json) => self.check(&content["schema"], &json, "the body", &mut faults),
                Err(error) => faults.push(format!("the body is no JSON: {error}")),
            },
            "application/x-ndjson" => {
                for line in answer.body.split_inclusive(|&byte| byte == b'\n') {
                    let item = serde_json::from_slice(line).expect("a line of JSON");
                    self.check(&self.0["components"]["schemas"]["Item"], &item, "a line", &mut faults);
                }
            }
            _ => {}
        }
        faults
    }

    fn resolve<'a>(&'a self, value: &'a Value) -> &'a Value {
        match value.get("$ref") {
            Some(reference) => {
                let pointer = reference.as_str().and_then(|text| text.strip_prefix('#')).expect("a reference into the document");
                self.0.pointer(pointer).unwrap_or_else(|| panic!("{reference} leads nowhere"))
            }
            None => value,
        }
    }

    fn holds(&self, schema: &Value, value: &Value) -> bool {
        let mut faults = Vec::new();
        self.check(schema, value, "", &mut faults);
        faults.is_empty()
    }

    fn check(&self, schema: &Value, value: &Value, place: &str, faults: &mut Vec<String>) {
        let Some(keywords) = schema.as_object() else { return assert!(schema.is_null(), "{schema} is no schema") };
        for (keyword, rule) in keywords {
            let list = || rule.as_array().expect("a list");
            let bound = || rule.as_f64().expect("a number");
            let is_fine = match keyword.as_str() {
                "$ref" => {
                    self.check(self.resolve(schema), value, place, faults);
                    true
                }
                "type" => rule.as_array().map_or_else(|| is_of_type(value, rule), |types| types.iter().any(|rule| is_of_type(value, rule))),
                "const" => value == rule,
                "enum" => list().contains(value),
                "minimum" => value.as_f64().is_none_or(|number| number >= bound()),
                "maximum" => value.as_f64().is_none_or(|number| number <= bound()),
                "minLength" => value.as_str().is_none_or(|text| text.chars().count() as f64 >= bound()),
                "maxLength" => value.as_str().is_none_or(|text| text.chars().count() as f64 <= bound()),
                "minItems" => value.as_array().is_none_or(|items| items.len() as f64 >= bound()),
                "maxItems" => value.as_array().is_none_or(|items| items.len() as f64 <= bound()),
                "required" => {
                    value.as_object().is_none_or(|fields| list().iter().all(|name| fields.contains_key(name.as_str().expect("a name"))))
                }
                "contentEncoding" => value.as_str().is_none_or(|text| flotilla_api::base64::decode(text).is_some()),
                "allOf" => {
                    list().iter().for_each(|schema| self.check(schema, value, place, faults));
                    true
                }
                "oneOf" => list().iter().filter(|schema| self.holds(schema, value)).count() == 1,
                "properties" => {
                    for (name, schema) in rule.as_object().expect("properties") {
                        if let Some(field) = value.get(name) {
                            self.check(schema, field, &format!("{place}.{name}"), faults);
                        }
                    }
                    true
                }
                "additionalProperties" => {
                    assert_eq!(*rule, false);
                    value.as_object().is_none_or(|fields| fields.keys().all(|name| schema["properties"].get(name).is_some()))
                }
                "items" => {
                    for (index, item) in value.as_array().into_iter().flatten().enumerate() {
                        self.check(rule, item, &format!("{place}[{index}]"), faults);
                    }
                    true
                }
                unchecked => {
                    assert!(UNCHECKED.contains(&unchecked), "the document uses {unchecked}, which is not checked here");
                    true
                }
            };
            if !is_fine {
                faults.push(format!("{place}: {value} does not hold {keyword} {rule}"));
            }
        }
    }
}

fn is_of_type(value: &Value, rule: &Value) -> bool {
    match rule.as_str().expect("a type's name") {
        "object" => value.is_object(),
        "array" => value.is_array(),
        "string" => value.is_string(),
        "integer" => value.is_i64() || value.is_u64(),
        "boolean" => value.is_boolean(),
        "null" => value.is_null(),
        other => panic!("the type {other} is not known here"),
    }
}
