//! What the board and the alert rules in deploy/ ask for, read without Prometheus or Grafana.
//!
//! Of PromQL only as much is understood as tells names from everything else; whether an expression means something is for
//! `promtool check rules` to say (docs/metrics.md). Of YAML it is the form that deploy/prometheus/alerts.yml describes.

use std::collections::BTreeSet;

/// What an expression asks for.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Expression {
    pub(crate) selectors: Vec<Selector>,
    /// Labels that results are grouped by or matched on.
    pub(crate) grouping: BTreeSet<String>,
}

/// One metric and its matchers.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Selector {
    pub(crate) metric: String,
    /// Label, operator, and what it is compared with.
    pub(crate) matchers: Vec<(String, String, String)>,
}

/// A rule of deploy/prometheus/alerts.yml: what stands behind its keys, at whatever depth.
#[derive(Debug, Default)]
pub(crate) struct Rule {
    pub(crate) keys: Vec<(String, String)>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Token {
    Word(String),
    Text(String),
    Sign(char),
}

impl Rule {
    /// The text of a key, empty if there is none.
    pub(crate) fn text(&self, key: &str) -> &str {
        self.keys.iter().find(|(name, _)| name == key).map_or("", |(_, text)| text)
    }
}

/// Reads the alert rules; panics at a line that is not of the simple form.
pub(crate) fn read_rules(yaml: &str) -> Vec<Rule> {
    let mut rules = Vec::<Rule>::new();
    // How far the key stands whose folded text is being read.
    let mut folded: Option<usize> = None;
    for line in yaml.lines().filter(|line| !line.trim().is_empty()) {
        let depth = line.len() - line.trim_start().len();
        if let Some(from) = folded.filter(|from| depth > *from) {
            let (_, text) = rules.last_mut().and_then(|rule| rule.keys.last_mut()).expect("a folded text has a key");
            assert!(depth == from + 2, "a folded text stands two further in: {line}");
            text.push_str(if text.is_empty() { "" } else { " " });
            text.push_str(line.trim());
            continue;
        }
        folded = None;
        if line.trim_start().starts_with('#') {
            continue;
        }
        let line = line.trim_start();
        let key = line.strip_prefix("- ").unwrap_or(line);
        let (key, text) = key.split_once(':').unwrap_or_else(|| panic!("no key: {line}"));
        if key == "alert" {
            rules.push(Rule::default());
        }
        let text = text.trim();
        if text == ">-" {
            folded = Some(depth);
        }
        let plain = text.strip_prefix('\'').and_then(|text| text.strip_suffix('\'')).unwrap_or(text);
        assert!(!plain.starts_with(['"', '|', '[']) && (plain == ">-" || !plain.starts_with('>')), "not of the simple form: {line}");
        if let Some(rule) = rules.last_mut() {
            rule.keys.push((key.to_owned(), if folded.is_some() { String::new() } else { plain.to_owned() }));
        }
    }
    rules
}

/// Reads an expression; panics at what it cannot tell.
pub(crate) fn read_expression(text: &str) -> Expression {
    let tokens = tokens(text);
    let mut expression = Expression::default();
    let sign = |place: usize| match tokens.get(place) {
        Some(Token::Sign(sign)) => *sign,
        _ => ' ',
    };
    let mut place = 0;
    while let Some(token) = tokens.get(place) {
        place += 1;
        let Token::Word(word) = token else {
            assert!(!matches!(token, Token::Sign('{')), "a selector without a metric's name: {text}");
            continue;
        };
        match word.as_str() {
            "by" | "without" | "on" | "ignoring" | "group_left" | "group_right" => {
                assert_eq!(sign(place), '(', "labels behind {word}: {text}");
                while sign(place) != ')' {
                    if let Some(Token::Word(label)) = tokens.get(place) {
                        expression.grouping.insert(label.clone());
                    }
                    place += 1;
                    assert!(place < tokens.len(), "open labels: {text}");
                }
            }
            "and" | "or" | "unless" | "bool" | "offset" => {}
            _ if sign(place) == '(' => {}
            // An aggregation whose labels come first: `sum by (job) (…)`.
            _ if matches!(tokens.get(place), Some(Token::Word(next)) if next == "by" || next == "without") => {}
            _ => {
                let mut matchers = Vec::new();
                if sign(place) == '{' {
                    let end = place
                        + tokens[place..].iter().position(|token| *token == Token::Sign('}')).unwrap_or_else(|| panic!("open: {text}"));
                    matchers =
                        tokens[place + 1..end].split(|token| *token == Token::Sign(',')).map(|tokens| matcher(tokens, text)).collect();
                    place = end + 1;
                }
                expression.selectors.push(Selector { metric: word.clone(), matchers });
            }
        }
    }
    expression
}

fn matcher(tokens: &[Token], text: &str) -> (String, String, String) {
    let [Token::Word(label), signs @ .., Token::Text(value)] = tokens else { panic!("no matcher {tokens:?}: {text}") };
    let signs: String = signs.iter().map(|sign| if let Token::Sign(sign) = sign { *sign } else { ' ' }).collect();
    assert!(["=", "!=", "=~", "!~"].contains(&signs.as_str()), "no matcher {tokens:?}: {text}");
    (label.clone(), signs, value.clone())
}

/// Words, texts and signs; numbers and ranges (`[5m]`) are left out, since no name stands in them.
fn tokens(text: &str) -> Vec<Token> {
    let mut tokens = Vec::new();
    let mut rest = text.trim_start();
    while let Some(first) = rest.chars().next() {
        let end_of = |part: &dyn Fn(char) -> bool| rest.find(|c| !part(c)).unwrap_or(rest.len());
        let length = match first {
            'a'..='z' | 'A'..='Z' | '_' => {
                let length = end_of(&|c| c.is_ascii_alphanumeric() || c == '_' || c == ':');
                tokens.push(Token::Word(rest[..length].to_owned()));
                length
            }
            '0'..='9' | '.' => end_of(&|c| c.is_ascii_alphanumeric() || c == '.'),
            '[' => rest.find(']').unwrap_or_else(|| panic!("an open range: {text}")) + 1,
            '"' => {
                let length = rest[1..].find('"').unwrap_or_else(|| panic!("an open text: {text}")) + 2;
                tokens.push(Token::Text(rest[1..length - 1].to_owned()));
                length
            }
            sign => {
                tokens.push(Token::Sign(sign));
                sign.len_utf8()
            }
        };
        rest = rest[length..].trim_start();
    }
    tokens
}

#[test]
fn names_are_told_from_the_rest_of_an_expression() {
    let read = read_expression(
        "sum by (job, le) (rate(a_bucket{x=~\"p|q\", y!=\"$z\"}[5m])) / 1e3 > bool 2 * b or on (peer) max(c_total offset 5m) == 1",
    );
    let of = |metric: &str, matchers: &[(&str, &str, &str)]| Selector {
        metric: metric.to_owned(),
        matchers: matchers.iter().map(|(label, sign, value)| ((*label).to_owned(), (*sign).to_owned(), (*value).to_owned())).collect(),
    };
    assert_eq!(read.selectors, [of("a_bucket", &[("x", "=~", "p|q"), ("y", "!=", "$z")]), of("b", &[]), of("c_total", &[])]);
    assert_eq!(read.grouping.into_iter().collect::<Vec<_>>(), ["job", "le", "peer"]);
}

#[test]
fn rules_are_read_with_folded_texts() {
    let rules = read_rules(
        "groups:\n  - name: g\n    rules:\n      - alert: A\n        # Why.\n        expr: >-\n          a\n          > 1\n        for: 1m\n\
         \x20       annotations:\n          summary: '{{ $value }}: b'\n      - alert: B\n        expr: c == 1\n",
    );
    assert_eq!(rules.len(), 2);
    assert_eq!((rules[0].text("expr"), rules[0].text("for"), rules[0].text("summary")), ("a > 1", "1m", "{{ $value }}: b"));
    assert_eq!((rules[1].text("alert"), rules[1].text("expr"), rules[1].text("summary")), ("B", "c == 1", ""));
}
