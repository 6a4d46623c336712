//! `GET /openapi.json`: the document, with an `ETag` of its content.
//!
//! Its tests hold the document against the table of routes, both ways.

use super::answer::Answer;
use super::handler::read_answer;
use bytes::Bytes;
use flotilla_api::OPENAPI;
use flotilla_node::request::Reply;
use flotilla_types::{Condition, Version};
use hyper::StatusCode;

/// Answers the document, under a condition as any value.
pub(super) fn answer(condition: &Condition) -> Answer {
    let version = Version(u64::from(crc32c::crc32c(OPENAPI.as_bytes())));
    let answer = read_answer(Reply::Value { version, value: Bytes::from_static(OPENAPI.as_bytes()) }, condition);
    match answer.status {
        StatusCode::OK => Answer { content_type: Some("application/json"), ..answer },
        _ => answer,
    }
}

#[cfg(test)]
mod tests {
    use super::super::dashboard::DashboardFile;
    use super::super::route::Route;
    use super::*;
    use serde_json::{Map, Value};
    use std::collections::BTreeSet;

    const METHODS: [&str; 8] = ["get", "head", "put", "delete", "post", "options", "patch", "trace"];

    fn paths() -> Map<String, Value> {
        let document: Value = serde_json::from_str(OPENAPI).expect("JSON");
        document["paths"].as_object().expect("paths").clone()
    }

    /// The route of a path of the document.
    fn route<'a>(method: &str, path: &'a str) -> Route<'a> {
        Route::of(&method.to_uppercase().parse().expect("a method"), path)
    }

    /// The routes in turn: a new one does not compile before it has its place here, and does not pass before it is documented.
    fn after(route: Route<'_>) -> Option<Route<'static>> {
        Some(match route {
            Route::KvGet(_) => Route::KvPut("x"),
            Route::KvPut(_) => Route::KvDelete("x"),
            Route::KvDelete(_) => Route::KvIncrement("x"),
            Route::KvIncrement(_) => Route::Scan,
            Route::Scan => Route::DeleteRange,
            Route::DeleteRange => Route::Batch,
            Route::Batch => Route::Cluster,
            Route::Cluster => Route::Join,
            Route::Join => Route::NodeRemove("x"),
            Route::NodeRemove(_) => Route::NodeDrain("x"),
            Route::NodeDrain(_) => Route::ShardLeader("x"),
            Route::ShardLeader(_) => Route::Rebalance,
            Route::Rebalance => Route::Recover,
            Route::Recover => Route::Locate("x"),
            Route::Locate(_) => Route::Stats,
            Route::Stats => Route::Livez,
            Route::Livez => Route::Readyz,
            Route::Readyz => Route::Metrics,
            Route::Metrics => Route::OpenApi,
            Route::OpenApi => Route::Dashboard(DashboardFile::Page),
            Route::Dashboard(DashboardFile::Page) => Route::Dashboard(DashboardFile::Script),
            Route::Dashboard(DashboardFile::Script) => Route::Dashboard(DashboardFile::Style),
            Route::Dashboard(DashboardFile::Style) | Route::NotBuilt | Route::WrongMethod(_) | Route::Unknown => return None,
        })
    }

    #[test]
    fn every_route_is_documented_and_every_documented_path_is_a_route() {
        let mut documented = Vec::new();
        for (template, item) in paths() {
            let path = template.replace("{key}", "x").replace("{name}", "x").replace("{shard}", "x");
            let methods: BTreeSet<&str> = METHODS.into_iter().filter(|method| item.get(method).is_some()).collect();
            for method in METHODS {
                let route = route(method, &path);
                let Some(operation) = item.get(method) else {
                    // A key may end in `/incr`: its other methods are those of the key's own path.
                    let of_other_path =
                        template.ends_with("/incr") && matches!(route, Route::KvGet(_) | Route::KvPut(_) | Route::KvDelete(_));
                    let Route::WrongMethod(allow) = route else {
                        assert!(of_other_path, "{method} {template} is {route:?} and not documented");
                        continue;
                    };
                    let allow: BTreeSet<String> = allow.split(", ").map(str::to_lowercase).collect();
                    assert!(methods.iter().all(|method| allow.contains(*method)), "{template}: {methods:?} are not {allow:?}");
                    continue;
                };
                if operation["x-not-built"] == true {
                    assert_eq!(route, Route::NotBuilt, "{method} {template}");
                } else {
                    assert!(!matches!(route, Route::NotBuilt | Route::WrongMethod(_) | Route::Unknown), "{method} {template} is {route:?}");
                    documented.push(format!("{:?}", route));
                }
            }
        }
        let mut next = Some(Route::KvGet("x"));
        while let Some(route) = next {
            assert!(documented.contains(&format!("{route:?}")), "{route:?} is not documented");
            next = after(route);
        }
    }

    #[test]
    fn parameters_are_those_that_the_routes_take() {
        for (template, item) in paths() {
            let path = template.replace("{key}", "x").replace("{name}", "x").replace("{shard}", "x");
            for method in METHODS {
                let Some(operation) = item.get(method).filter(|operation| operation["x-not-built"] != true) else { continue };
                let named = operation["parameters"].as_array().into_iter().flatten();
                let named = named.map(|parameter| parameter["$ref"].as_str().expect("a reference").rsplit('/').next().expect("a name"));
                let headers = ["if_match", "if_none_match", "idempotency_key"];
                let named: BTreeSet<&str> = named.filter(|name| !headers.contains(name)).collect();
                let taken: BTreeSet<&str> = route(method, &path).parameters().expect("it looks at them").iter().copied().collect();
                assert_eq!(named, taken, "{method} {template}");
            }
        }
    }
}
