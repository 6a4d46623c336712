//! The `curl` lines of a document, read as a shell and curl would: so that they can be tried where there is no curl.

/// One line.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct CurlLine {
    pub(crate) method: String,
    /// Path and query; the host was `$E`.
    pub(crate) target: String,
    /// Names and values.
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: String,
    /// The status given behind `#`.
    pub(crate) status: u16,
}

/// Every command of the indented blocks that begins with `curl`.
pub(crate) fn curl_lines(document: &str) -> Vec<CurlLine> {
    let mut commands: Vec<String> = Vec::new();
    for line in document.lines() {
        let Some(code) = line.strip_prefix("    ") else { continue };
        match commands.last_mut() {
            // Inside quotes a command goes on.
            Some(open) if open.matches('\'').count() % 2 == 1 => *open += &format!("\n{code}"),
            _ if code.starts_with("curl ") => commands.push(code.to_owned()),
            _ => {}
        }
    }
    commands.iter().map(|command| parse(command)).collect()
}

fn parse(command: &str) -> CurlLine {
    let (command, status) = command.rsplit_once(" # ").unwrap_or_else(|| panic!("no status is given behind {command}"));
    let status = status.split(' ').next().and_then(|status| status.parse().ok()).unwrap_or_else(|| panic!("no status behind {command}"));
    let mut line = CurlLine { method: String::new(), target: String::new(), headers: Vec::new(), body: String::new(), status };
    let mut words = words(command).into_iter().skip(1);
    let (mut method, mut default) = (None, "GET");
    while let Some(word) = words.next() {
        let mut argument = || words.next().unwrap_or_else(|| panic!("{word} wants an argument: {command}"));
        match word.as_str() {
            "-i" | "-N" | "-s" => {}
            "-I" => default = "HEAD",
            "-X" => method = Some(argument()),
            "-H" => {
                let field = argument();
                let (name, value) = field.split_once(": ").unwrap_or_else(|| panic!("{field} is no header"));
                line.headers.push((name.to_owned(), value.to_owned()));
            }
            "-d" | "--data-binary" => (line.body, default) = (argument(), "POST"),
            target => {
                let target = target.strip_prefix("$E").unwrap_or_else(|| panic!("what is {target} in {command}?"));
                assert!(line.target.is_empty(), "two targets: {command}");
                line.target = target.to_owned();
            }
        }
    }
    line.method = method.unwrap_or_else(|| default.to_owned());
    line
}

/// A shell's words: split at blanks, quotes taken off.
fn words(command: &str) -> Vec<String> {
    let (mut words, mut word, mut quote) = (Vec::new(), None::<String>, None);
    for c in command.chars() {
        match (quote, c) {
            (Some(open), c) if c == open => quote = None,
            (None, '\'' | '"') => {
                quote = Some(c);
                word.get_or_insert_default();
            }
            (None, ' ' | '\n') => words.extend(word.take()),
            (None, '?' | '&' | ';' | '*' | '(') => panic!("{c:?} must be quoted, or a shell makes something of it: {command}"),
            _ => word.get_or_insert_default().push(c),
        }
    }
    assert_eq!(quote, None, "an open quote in {command}");
    words.extend(word);
    words
}
