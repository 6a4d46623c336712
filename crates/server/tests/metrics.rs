//! What `/metrics` shows, read by stricter rules than Prometheus has, and held against docs/metrics.md; and what deploy/ asks of it.
#![allow(clippy::disallowed_methods, reason = "real servers need real folders and time")]

mod deploy;
mod servers;

use deploy::{read_expression, read_rules};
use serde_json::Value;
use servers::{config, on_one_thread, start};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

type Labels = BTreeMap<String, String>;

/// A family as it is shown.
#[derive(Debug, Default)]
struct Family {
    help: String,
    kind: String,
    /// What is behind the family's name, the labels, the value.
    samples: Vec<(String, Labels, f64)>,
}

/// Reads an exposition; panics at whatever is not as it should be.
fn parse(text: &str) -> BTreeMap<String, Family> {
    let mut families = BTreeMap::<String, Family>::new();
    let mut current = String::new();
    let mut series = BTreeSet::new();
    assert!(text.ends_with('\n'), "the last line is ended");
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            let (name, help) = rest.split_once(' ').unwrap_or_else(|| panic!("no help: {line}"));
            assert!(help.ends_with('.') && help.len() > 5, "a sentence: {line}");
            let family = Family { help: help.to_owned(), ..Family::default() };
            assert!(families.insert(name.to_owned(), family).is_none(), "{name} is there twice");
            name.clone_into(&mut current);
        } else if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').unwrap_or_else(|| panic!("no type: {line}"));
            assert_eq!(name, current, "the type comes behind the help");
            kind.clone_into(&mut families.get_mut(name).expect("it has its help").kind);
        } else {
            let (name_and_labels, value) = line.rsplit_once(' ').unwrap_or_else(|| panic!("no value: {line}"));
            let (name, labels) = match name_and_labels.split_once('{') {
                Some((name, labels)) => (name, parse_labels(labels.strip_suffix('}').unwrap_or_else(|| panic!("open labels: {line}")))),
                None => (name_and_labels, Labels::new()),
            };
            let suffix = name.strip_prefix(current.as_str()).unwrap_or_else(|| panic!("{name} stands under {current}"));
            assert!(series.insert((name.to_owned(), labels.clone())), "{name_and_labels} is there twice");
            let family = families.get_mut(&current).expect("samples stand under a family");
            assert!(!family.kind.is_empty(), "{name} has a type");
            let value: f64 = value.parse().unwrap_or_else(|_| panic!("no number: {line}"));
            assert!(value >= 0.0, "nothing here is below nought: {line}");
            family.samples.push((suffix.to_owned(), labels, value));
        }
    }
    families
}

fn parse_labels(text: &str) -> Labels {
    let mut labels = Labels::new();
    let mut rest = text;
    while let Some((name, behind)) = rest.split_once("=\"") {
        let (value, behind) = behind.split_once('"').unwrap_or_else(|| panic!("an open label: {text}"));
        assert!(!value.contains('\\') && !value.is_empty(), "no label of ours needs escapes: {text}");
        assert!(is_name(name), "{name} is no label");
        assert!(labels.insert(name.to_owned(), value.to_owned()).is_none(), "{name} is there twice");
        rest = behind.strip_prefix(',').unwrap_or(behind);
    }
    assert!(rest.is_empty(), "{rest} is no label");
    labels
}

fn is_name(name: &str) -> bool {
    name.starts_with(|c: char| c.is_ascii_lowercase()) && name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_')
}

/// The rules for names, units and kinds.
fn check(name: &str, family: &Family) {
    let Family { help, kind, samples } = family;
    assert!(is_name(name) && !name.contains("__"), "{name}");
    assert!(name.starts_with("flotilla_") || name.starts_with("process_"), "{name}");
    for unit in ["ms", "millis", "micros", "us", "nanos", "ns", "minutes", "kb", "mb", "mib", "kib", "percent"] {
        assert!(!name.split('_').any(|word| word == unit), "{name} has no base unit");
    }
    let unit = name.strip_suffix("_total").unwrap_or(name);
    if name.split('_').any(|word| word == "bytes" || word == "seconds") {
        assert!(unit.ends_with("_bytes") || unit.ends_with("_seconds"), "the unit of {name} comes last");
    }
    let words = help.to_ascii_lowercase();
    assert!(!words.starts_with("bytes ") && !words.starts_with("about how many bytes") || unit.ends_with("_bytes"), "{name}: {help}");
    assert!(!words.starts_with("time ") || unit.ends_with("_seconds"), "{name}: {help}");
    match kind.as_str() {
        "counter" => assert!(name.ends_with("_total"), "{name} is a counter"),
        "gauge" => assert!(["_total", "_count", "_sum", "_bucket"].iter().all(|end| !name.ends_with(end)), "{name} is a gauge"),
        "histogram" => return check_histogram(name, samples),
        other => panic!("{name} is a {other}"),
    }
    assert!(samples.iter().all(|(suffix, labels, _)| suffix.is_empty() && !labels.contains_key("le")), "{name}");
    assert!(!samples.is_empty(), "{name} has samples");
}

/// What is behind a histogram's name, a bucket's bound, the value.
type Point<'a> = (&'a str, Option<f64>, f64);

fn check_histogram(name: &str, samples: &[(String, Labels, f64)]) {
    assert!(name.ends_with("_seconds") || name.ends_with("_bytes"), "{name} has a unit");
    let mut by_labels: BTreeMap<Labels, Vec<Point<'_>>> = BTreeMap::new();
    for (suffix, labels, value) in samples {
        let mut labels = labels.clone();
        let bound = labels.remove("le").map(|bound| if bound == "+Inf" { f64::INFINITY } else { bound.parse().expect("a bound") });
        assert_eq!(bound.is_some(), suffix == "_bucket", "{name}");
        by_labels.entry(labels).or_default().push((suffix, bound, *value));
    }
    for (labels, samples) in by_labels {
        let buckets: Vec<(f64, f64)> = samples.iter().filter_map(|(_, bound, value)| Some(((*bound)?, *value))).collect();
        assert!(buckets.is_sorted_by(|a, b| a.0 < b.0 && a.1 <= b.1), "{name} {labels:?}: {buckets:?}");
        let of = |suffix| samples.iter().filter(|sample| sample.0 == suffix).map(|sample| sample.2).collect::<Vec<_>>();
        let (last, count) = (buckets.last().expect("buckets"), of("_count"));
        assert_eq!((last.0, vec![last.1]), (f64::INFINITY, count), "{name} {labels:?}");
        assert_eq!(of("_sum").len(), 1, "{name} {labels:?}");
    }
}

/// A family's row in docs/metrics.md.
fn row(name: &str, family: &Family) -> String {
    let labels: BTreeSet<&str> = family.samples.iter().flat_map(|(_, labels, _)| labels.keys()).map(String::as_str).collect();
    let labels: Vec<&str> = labels.into_iter().filter(|label| *label != "le").collect();
    format!("| `{name}` | {} | {} | {} |", family.kind, labels.join(", "), family.help)
}

/// Has two nodes in one cluster, of which the first has counted a write and a read of an absent key, and gives what that one shows.
async fn shown_by_one_of_two(folder: &Path) -> BTreeMap<String, Family> {
    let dir = |name: &str| folder.join(name);
    let first = start(config(&dir("n1"), |s| s.name = Some("n1".to_owned()))).await.expect("a start");
    first.ask_until(200, "GET", "/readyz", "").await;
    let join = config(&dir("n2"), |s| (s.name, s.join) = (Some("n2".to_owned()), Some(first.url())));
    let second = start(join).await.expect("n2 joins");
    second.put("k", "v").await;
    assert_eq!(first.ask("GET", "/v1/kv/absent", "").await.0, 404);
    // The threads show what they counted once a second.
    let mut text = first.ask_until(200, "GET", "/metrics", "").await;
    while value(&parse(&text), "flotilla_log_batches_total", &[]) < 1.0 || !text.contains("flotilla_link_up{peer=\"n2\"} 1") {
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        text = first.ask_until(200, "GET", "/metrics", "").await;
    }
    second.stop().await;
    first.stop().await;
    parse(&text)
}

#[test]
fn what_is_shown_is_well_formed_and_documented() {
    on_one_thread(async |folder| {
        let families = shown_by_one_of_two(folder.path()).await;
        for (name, family) in &families {
            check(name, family);
        }
        let refused = [("route", "kv_get"), ("status", "4xx"), ("outcome", "not-applied")];
        assert_eq!(value(&families, "flotilla_http_requests_total", &refused), 1.0);
        for name in [
            "flotilla_proposals_total",
            "flotilla_elections_begun_total",
            "flotilla_raft_leader_changes_total",
            "flotilla_raft_term_max",
            "flotilla_applied_entries_total",
            "flotilla_log_segments",
            "flotilla_log_disk_bytes",
            "flotilla_store_disk_bytes",
            "flotilla_keys",
            "flotilla_disk_free_bytes",
            "process_resident_memory_bytes",
        ] {
            assert!(value(&families, name, &[]) > 0.0, "{name}");
        }
        for name in ["flotilla_link_sent_bytes_total", "flotilla_link_frames_received_total", "flotilla_link_connects_total"] {
            assert!(value(&families, name, &[("peer", "n2")]) > 0.0, "{name}");
        }
        let page = file("docs/metrics.md");
        let documented: BTreeSet<&str> = page.lines().filter(|line| line.starts_with("| `")).collect();
        let shown: BTreeSet<String> = families.iter().map(|(name, family)| row(name, family)).collect();
        let missing: Vec<&str> = shown.iter().map(String::as_str).filter(|row| !documented.contains(row)).collect();
        let stale: Vec<&&str> = documented.iter().filter(|row| !shown.contains(**row)).collect();
        assert!(missing.is_empty() && stale.is_empty(), "docs/metrics.md lacks\n{}\nand wrongly has\n{stale:#?}", missing.join("\n"));
    });
}

/// One series' value.
fn value(families: &BTreeMap<String, Family>, name: &str, labels: &[(&str, &str)]) -> f64 {
    let labels: Labels = labels.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    let family = families.get(name).unwrap_or_else(|| panic!("{name} is not shown"));
    family.samples.iter().find(|sample| sample.1 == labels).unwrap_or_else(|| panic!("{name} has no {labels:?}")).2
}

/// A file of the repository.
fn file(path: &str) -> String {
    let full = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(path);
    std::fs::read_to_string(full).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// Labels and the values that they have, of what a metric's name selects; `None` if nothing is shown under that name.
fn labels_of(families: &BTreeMap<String, Family>, metric: &str) -> Option<BTreeMap<String, BTreeSet<String>>> {
    // Prometheus itself adds these labels to everything, and whether a node answered it.
    let mut labels: BTreeMap<String, BTreeSet<String>> = ["job", "instance"].map(|label| (label.to_owned(), BTreeSet::new())).into();
    let mut is_shown = metric == "up";
    for (family, Family { samples, .. }) in families {
        let of_metric = samples.iter().filter(|(suffix, ..)| metric.strip_prefix(family.as_str()) == Some(suffix));
        for (label, value) in of_metric.inspect(|_| is_shown = true).flat_map(|(_, labels, _)| labels) {
            labels.entry(label.clone()).or_default().insert(value.clone());
        }
    }
    is_shown.then_some(labels)
}

/// Whether a node shows all that an expression names; `legend` is how its results are called on the board.
fn check_expression(families: &BTreeMap<String, Family>, text: &str, legend: &str) {
    let expression = read_expression(text);
    assert!(!expression.selectors.is_empty(), "nothing is asked for: {text}");
    let mut known = BTreeSet::new();
    for selector in &expression.selectors {
        let labels = labels_of(families, &selector.metric).unwrap_or_else(|| panic!("no node shows {}: {text}", selector.metric));
        for (label, operator, compared) in &selector.matchers {
            let values = labels.get(label).unwrap_or_else(|| panic!("{} has no label {label}: {text}", selector.metric));
            let is_regex = operator.ends_with('~');
            let mut compared = compared.split(|c| is_regex && c == '|');
            // What a node is called and what the board's variables hold is not for a test to know.
            let is_known = |value: &str| label == "job" || label == "instance" || value.starts_with('$') || values.contains(value);
            assert!(compared.all(is_known), "{label} of {} has no such value: {text}", selector.metric);
        }
        known.extend(labels.into_keys());
    }
    assert!(expression.grouping.is_subset(&known), "a label to group by is on no metric: {text}");
    let grouped = if expression.grouping.is_empty() { known } else { expression.grouping };
    for label in legend.split("{{").skip(1) {
        let label = label.split("}}").next().unwrap_or_default();
        assert!(grouped.contains(label), "the legend {legend} names a label that is not there: {text}");
    }
}

/// All panels of a board or a row, rows and those in rows that are folded included.
fn panels(of: &Value) -> Vec<&Value> {
    let own = of["panels"].as_array().into_iter().flatten();
    own.flat_map(|panel| [vec![panel], panels(panel)].concat()).collect()
}

fn text<'a>(of: &'a Value, pointer: &str) -> &'a str {
    of.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

fn check_board(families: &BTreeMap<String, Family>, board: &Value) {
    let (mut ids, mut asked) = (BTreeSet::new(), 0);
    for panel in panels(board) {
        let title = text(panel, "/title");
        assert!(!title.is_empty() && ids.insert(panel["id"].as_u64().expect("an id")), "title and id are its own: {title}");
        if text(panel, "/type") == "row" {
            continue;
        }
        let description = text(panel, "/description");
        assert!(description.ends_with('.') && description.len() > 20, "{title} is described in a sentence");
        assert!(!text(panel, "/fieldConfig/defaults/unit").is_empty(), "{title} has a unit");
        let targets = panel["targets"].as_array().unwrap_or_else(|| panic!("{title} asks for nothing"));
        for target in targets {
            check_expression(families, text(target, "/expr"), text(target, "/legendFormat"));
            asked += 1;
        }
    }
    assert!(asked > 0, "the board asks for something");
    let variables: BTreeMap<&str, &Value> =
        board.pointer("/templating/list").and_then(Value::as_array).into_iter().flatten().map(|v| (text(v, "/name"), v)).collect();
    for name in ["job", "instance"] {
        let query = text(variables.get(name).unwrap_or_else(|| panic!("no variable {name}")), "/query/query");
        let query = query.strip_prefix("label_values(").and_then(|query| query.strip_suffix(')'));
        let (selector, label) = query.and_then(|query| query.rsplit_once(", ")).unwrap_or_else(|| panic!("{name} lists a label's values"));
        assert_eq!(label, name);
        check_expression(families, selector, "");
    }
}

fn check_rules(families: &BTreeMap<String, Family>, rules: &str, operations: &str) {
    let (count, rules) = (rules.matches("- alert:").count(), read_rules(rules));
    assert_eq!(rules.len(), count, "all rules are read");
    assert!(count > 0, "there are rules");
    let mut names = BTreeSet::new();
    for rule in &rules {
        let (name, summary, description) = (rule.text("alert"), rule.text("summary"), rule.text("description"));
        assert!(names.insert(name), "{name} is there twice");
        check_expression(families, rule.text("expr"), "");
        assert!(["critical", "warning", "info"].contains(&rule.text("severity")), "{name} has a severity");
        assert!(!summary.is_empty() && !summary.ends_with('.'), "{name} has a summary, which is a heading");
        assert!(description.ends_with('.'), "{name} has a description in sentences");
        let sections: Vec<&str> = description.split("docs/operations.md, \"").skip(1).collect();
        assert!(!sections.is_empty(), "{name} names a section of docs/operations.md");
        for section in sections {
            let section = section.split('"').next().unwrap_or_default();
            let begins = [format!("**{section}.**"), format!("**{section}**")];
            assert!(operations.lines().any(|line| begins.iter().any(|begin| line.starts_with(begin))), "{name}: no section {section}");
        }
    }
}

#[test]
fn what_the_board_and_the_alerts_ask_for_is_shown() {
    on_one_thread(async |folder| {
        let families = shown_by_one_of_two(folder.path()).await;
        check_rules(&families, &file("deploy/prometheus/alerts.yml"), &file("docs/operations.md"));
        let board: Value = serde_json::from_str(&file("deploy/grafana/flotilla.json")).expect("the board is JSON");
        check_board(&families, &board);
    });
}
