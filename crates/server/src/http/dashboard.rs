//! The dashboard's files, which every node serves from its own memory: they need no internet and no other node.

use super::answer::Answer;
use hyper::StatusCode;

/// The page may load nothing but its own two files, and ask only nodes: what a key or a node is called cannot become code.
/// Other nodes' addresses change with the cluster, so they cannot be named here.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src data:; connect-src http: https:; base-uri 'none'; \
                      form-action 'none'; frame-ancestors 'none'";

/// One of the files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum DashboardFile {
    /// `index.html`.
    Page,
    /// `dashboard.js`.
    Script,
    /// `style.css`.
    Style,
}

impl DashboardFile {
    /// Answers the file.
    pub(super) fn answer(self) -> Answer {
        let (content_type, text) = match self {
            DashboardFile::Page => ("text/html; charset=utf-8", include_str!("../dashboard/index.html")),
            DashboardFile::Script => ("text/javascript; charset=utf-8", include_str!("../dashboard/dashboard.js")),
            DashboardFile::Style => ("text/css; charset=utf-8", include_str!("../dashboard/style.css")),
        };
        let headers: &[_] = &[
            ("content-security-policy", POLICY),
            ("x-content-type-options", "nosniff"),
            // A page that a node of another version served must not be mixed with this one's.
            ("cache-control", "no-cache"),
        ];
        Answer { headers, ..Answer::new(StatusCode::OK, content_type, text) }
    }
}
