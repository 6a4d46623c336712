//! Paths and methods of the contract: which route a request is for.

use super::dashboard::DashboardFile;
use flotilla_api::http::{BATCH_PARAMETERS, DELETE_RANGE_PARAMETERS, SCAN_PARAMETERS};
use hyper::Method;

/// A route that this release answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Route<'a> {
    /// `GET` and `HEAD /v1/kv/{key}`, the key still encoded.
    KvGet(&'a str),
    /// `PUT /v1/kv/{key}`.
    KvPut(&'a str),
    /// `DELETE /v1/kv/{key}`.
    KvDelete(&'a str),
    /// `POST /v1/kv/{key}/incr`.
    KvIncrement(&'a str),
    /// `GET /v1/kv`.
    Scan,
    /// `DELETE /v1/kv`.
    DeleteRange,
    /// `POST /v1/batch`.
    Batch,
    /// `GET /v1/cluster`.
    Cluster,
    /// `POST /v1/cluster/nodes`.
    Join,
    /// `DELETE /v1/cluster/nodes/{name}`, the name still encoded.
    NodeRemove(&'a str),
    /// `POST /v1/cluster/nodes/{name}/drain`.
    NodeDrain(&'a str),
    /// `POST /v1/shards/{id}/leader`, the id as it stands there.
    ShardLeader(&'a str),
    /// `POST /v1/cluster/rebalance`.
    Rebalance,
    /// `POST /v1/cluster/recover`.
    Recover,
    /// `GET /v1/locate/{key}`.
    Locate(&'a str),
    /// `GET /v1/stats`.
    Stats,
    /// `GET /livez`.
    Livez,
    /// `GET /readyz`.
    Readyz,
    /// `GET /metrics`.
    Metrics,
    /// `GET /openapi.json`.
    OpenApi,
    /// `GET /`, and what the page there loads.
    Dashboard(DashboardFile),
    /// Part of the contract, not built yet.
    NotBuilt,
    /// The path takes other methods; these.
    WrongMethod(&'static str),
    /// No such path.
    Unknown,
}

/// What stands behind the key where it is to be incremented.
const INCREMENT: &str = "/incr";

/// Routes as metrics tell them apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RouteKind {
    KvGet,
    KvPut,
    KvDelete,
    KvIncrement,
    Scan,
    DeleteRange,
    Batch,
    Cluster,
    Admin,
    Probe,
    Other,
}

impl RouteKind {
    pub(super) const ALL: [RouteKind; 11] = [
        RouteKind::KvGet,
        RouteKind::KvPut,
        RouteKind::KvDelete,
        RouteKind::Scan,
        RouteKind::DeleteRange,
        RouteKind::KvIncrement,
        RouteKind::Batch,
        RouteKind::Cluster,
        RouteKind::Admin,
        RouteKind::Probe,
        RouteKind::Other,
    ];

    pub(super) fn as_str(self) -> &'static str {
        match self {
            RouteKind::KvGet => "kv_get",
            RouteKind::KvPut => "kv_put",
            RouteKind::KvDelete => "kv_delete",
            RouteKind::KvIncrement => "kv_increment",
            RouteKind::Scan => "scan",
            RouteKind::DeleteRange => "delete_range",
            RouteKind::Batch => "batch",
            RouteKind::Cluster => "cluster",
            RouteKind::Admin => "admin",
            RouteKind::Probe => "probe",
            RouteKind::Other => "other",
        }
    }
}

impl<'a> Route<'a> {
    /// The route of a method and a path, which is still encoded.
    pub(super) fn of(method: &Method, path: &'a str) -> Route<'a> {
        let read = method == Method::GET || method == Method::HEAD;
        if let Some(key) = path.strip_prefix("/v1/kv/") {
            return match *method {
                Method::GET | Method::HEAD => Route::KvGet(key),
                Method::PUT => Route::KvPut(key),
                Method::DELETE => Route::KvDelete(key),
                // A key may itself end in `/incr`; only `POST` makes it a route.
                Method::POST if key.len() > INCREMENT.len() && key.ends_with(INCREMENT) => {
                    Route::KvIncrement(&key[..key.len() - INCREMENT.len()])
                }
                _ if key.ends_with("/incr") => Route::WrongMethod("GET, HEAD, PUT, DELETE, POST"),
                _ => Route::WrongMethod("GET, HEAD, PUT, DELETE"),
            };
        }
        if let Some(key) = path.strip_prefix("/v1/locate/") {
            return if read { Route::Locate(key) } else { Route::WrongMethod("GET, HEAD") };
        }
        let (route, is_method, allow) = match path {
            "/v1/cluster" => (Route::Cluster, read, "GET, HEAD"),
            "/v1/cluster/nodes" => (Route::Join, method == Method::POST, "POST"),
            "/v1/cluster/rebalance" => (Route::Rebalance, method == Method::POST, "POST"),
            "/v1/cluster/recover" => (Route::Recover, method == Method::POST, "POST"),
            "/livez" => (Route::Livez, read, "GET, HEAD"),
            "/readyz" => (Route::Readyz, read, "GET, HEAD"),
            "/metrics" => (Route::Metrics, read, "GET, HEAD"),
            "/openapi.json" => (Route::OpenApi, read, "GET, HEAD"),
            "/" => (Route::Dashboard(DashboardFile::Page), read, "GET, HEAD"),
            "/dashboard.js" => (Route::Dashboard(DashboardFile::Script), read, "GET, HEAD"),
            "/style.css" => (Route::Dashboard(DashboardFile::Style), read, "GET, HEAD"),
            "/v1/stats" => (Route::Stats, read, "GET, HEAD"),
            "/v1/kv" if method == Method::DELETE => (Route::DeleteRange, true, ""),
            "/v1/kv" => (Route::Scan, read, "GET, HEAD, DELETE"),
            "/v1/batch" => (Route::Batch, method == Method::POST, "POST"),
            "/v1/txn" | "/v1/restore" => (Route::NotBuilt, method == Method::POST, "POST"),
            "/v1/watch" | "/v1/backup" => (Route::NotBuilt, read, "GET, HEAD"),
            _ => {
                if let Some(name) = path.strip_prefix("/v1/cluster/nodes/") {
                    match name.split_once('/') {
                        None if !name.is_empty() => (Route::NodeRemove(name), method == Method::DELETE, "DELETE"),
                        Some((name, "drain")) if !name.is_empty() => (Route::NodeDrain(name), method == Method::POST, "POST"),
                        _ => return Route::Unknown,
                    }
                } else if let Some(rest) = path.strip_prefix("/v1/shards/") {
                    match rest.split_once('/') {
                        Some((id, "leader")) if !id.is_empty() => (Route::ShardLeader(id), method == Method::POST, "POST"),
                        _ => return Route::Unknown,
                    }
                } else {
                    return Route::Unknown;
                }
            }
        };
        if is_method { route } else { Route::WrongMethod(allow) }
    }

    /// How metrics call it.
    pub(super) fn kind(self) -> RouteKind {
        match self {
            Route::KvGet(_) => RouteKind::KvGet,
            Route::KvPut(_) => RouteKind::KvPut,
            Route::KvDelete(_) => RouteKind::KvDelete,
            Route::KvIncrement(_) => RouteKind::KvIncrement,
            Route::Scan => RouteKind::Scan,
            Route::DeleteRange => RouteKind::DeleteRange,
            Route::Batch => RouteKind::Batch,
            Route::Cluster | Route::Join | Route::Locate(_) | Route::Stats => RouteKind::Cluster,
            Route::NodeRemove(_) | Route::NodeDrain(_) | Route::ShardLeader(_) | Route::Rebalance | Route::Recover => RouteKind::Admin,
            Route::Livez | Route::Readyz | Route::Metrics | Route::OpenApi | Route::Dashboard(_) => RouteKind::Probe,
            Route::NotBuilt | Route::WrongMethod(_) | Route::Unknown => RouteKind::Other,
        }
    }

    /// The query parameters it takes; `None`: they are not looked at.
    pub(super) fn parameters(self) -> Option<&'static [&'static str]> {
        match self {
            Route::KvGet(_) => Some(&["timeout", "consistency"]),
            Route::KvPut(_) => Some(&["timeout", "ttl"]),
            Route::KvIncrement(_) => Some(&["timeout", "by"]),
            Route::Scan => Some(SCAN_PARAMETERS),
            Route::DeleteRange => Some(DELETE_RANGE_PARAMETERS),
            Route::Batch => Some(BATCH_PARAMETERS),
            Route::NodeRemove(_) => Some(&["timeout", "force", "dry_run"]),
            Route::NodeDrain(_) => Some(&["timeout", "undo", "dry_run"]),
            Route::ShardLeader(_) => Some(&["timeout", "to", "dry_run"]),
            Route::Rebalance => Some(&["timeout", "paused", "bytes_per_second", "dry_run"]),
            Route::Recover => Some(&["timeout", "plan", "dry_run"]),
            Route::Cluster => Some(&["timeout", "consistency"]),
            Route::KvDelete(_) | Route::Join | Route::Locate(_) | Route::Stats => Some(&["timeout"]),
            Route::Livez | Route::Readyz | Route::Metrics | Route::OpenApi | Route::Dashboard(_) => Some(&[]),
            Route::NotBuilt | Route::WrongMethod(_) | Route::Unknown => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn route<'a>(method: &str, path: &'a str) -> Route<'a> {
        Route::of(&method.parse().expect("a method"), path)
    }

    #[test]
    fn every_route_of_the_contract_is_known() {
        assert_eq!(route("GET", "/v1/kv/a/b"), Route::KvGet("a/b"));
        assert_eq!(route("HEAD", "/v1/kv/a"), Route::KvGet("a"));
        assert_eq!(route("PUT", "/v1/kv/a/incr"), Route::KvPut("a/incr"), "a key may end like a route");
        assert_eq!(route("DELETE", "/v1/kv/"), Route::KvDelete(""), "an empty key is for the key's parser to refuse");
        assert_eq!(route("GET", "/v1/kv"), Route::Scan);
        assert_eq!(route("DELETE", "/v1/kv"), Route::DeleteRange);
        assert_eq!(route("POST", "/v1/kv/a/b/incr"), Route::KvIncrement("a/b"));
        assert_eq!(route("POST", "/v1/kv/a/incr/incr"), Route::KvIncrement("a/incr"));
        assert_eq!(route("POST", "/v1/batch"), Route::Batch);
        assert_eq!(route("POST", "/v1/cluster/nodes"), Route::Join);
        assert_eq!(route("DELETE", "/v1/cluster/nodes/n1"), Route::NodeRemove("n1"));
        assert_eq!(route("POST", "/v1/cluster/nodes/n1/drain"), Route::NodeDrain("n1"));
        assert_eq!(route("POST", "/v1/shards/3/leader"), Route::ShardLeader("3"));
        assert_eq!(route("POST", "/v1/cluster/rebalance"), Route::Rebalance);
        assert_eq!(route("POST", "/v1/cluster/recover"), Route::Recover);
        assert_eq!(route("GET", "/v1/locate/x/y"), Route::Locate("x/y"));
        for (method, path) in [("POST", "/v1/txn"), ("GET", "/v1/watch"), ("GET", "/v1/backup"), ("POST", "/v1/restore")] {
            assert_eq!(route(method, path), Route::NotBuilt, "{method} {path}");
        }
    }

    #[test]
    fn other_methods_and_paths_are_refused() {
        assert_eq!(route("POST", "/v1/kv/a"), Route::WrongMethod("GET, HEAD, PUT, DELETE"));
        assert_eq!(route("PATCH", "/v1/kv/a/incr"), Route::WrongMethod("GET, HEAD, PUT, DELETE, POST"));
        assert_eq!(route("DELETE", "/v1/cluster"), Route::WrongMethod("GET, HEAD"));
        assert_eq!(route("PUT", "/v1/shards/3/leader"), Route::WrongMethod("POST"));
        for path in
            ["", "*", "/v1", "/v1/", "/v1/kvx", "/v2/kv/a", "/x/v1/shards/1/leader", "/v1/shards//leader", "/v1/cluster/nodes/", "/livez/"]
        {
            assert_eq!(route("GET", path), Route::Unknown, "{path}");
        }
    }
}
