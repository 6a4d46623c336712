//! The trace of a run: every happening goes into one hash, so that two runs can be compared at once,
//! and, if wanted, into lines for people.

use crate::history::Moment;

/// The trace.
#[derive(Debug, Default)]
pub struct Trace {
    hash: u64,
    count: u64,
    lines: Option<Vec<String>>,
    print: bool,
}

/// What happens to the lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lines {
    /// They are not made: the hash is enough.
    Dropped,
    /// They are printed as they come.
    Printed,
    /// They are kept, for tests.
    Kept,
}

impl Trace {
    /// An empty trace.
    pub fn new(lines: Lines) -> Trace {
        Trace { hash: 0x666c_6f74_696c_6c61, count: 0, lines: (lines == Lines::Kept).then(Vec::new), print: lines == Lines::Printed }
    }

    /// Notes a happening: numbers into the hash, and a line if lines are wanted.
    pub fn note(&mut self, now: Moment, what: &str, numbers: &[u64], line: impl FnOnce() -> String) {
        self.count += 1;
        self.mix(now.0);
        self.bytes(what.as_bytes());
        for number in numbers {
            self.mix(*number);
        }
        if self.has_lines() {
            let line = format!("{now} {what} {}", line());
            if self.print {
                println!("{line}");
            }
            if let Some(lines) = &mut self.lines {
                lines.push(line);
            }
        }
    }

    /// Notes bytes that went over a link.
    pub fn bytes(&mut self, bytes: &[u8]) {
        self.mix(bytes.len() as u64);
        let mut words = bytes.chunks_exact(8);
        for word in &mut words {
            self.mix(u64::from_le_bytes(word.try_into().expect("a word has 8 bytes")));
        }
        for byte in words.remainder() {
            self.mix(u64::from(*byte));
        }
    }

    /// Whether lines are wanted.
    pub fn has_lines(&self) -> bool {
        self.print || self.lines.is_some()
    }

    /// Adds a line for people that is no happening: what a node shows of itself, say.
    pub fn remark(&mut self, now: Moment, line: &str) {
        if self.print {
            println!("{now} {line}");
        }
        if let Some(lines) = &mut self.lines {
            lines.push(format!("{now} {line}"));
        }
    }

    /// The hash of all that happened so far.
    pub fn hash(&self) -> u64 {
        self.hash
    }

    /// How many happenings there were.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// The lines, if they were kept.
    pub fn lines(&self) -> &[String] {
        self.lines.as_deref().unwrap_or_default()
    }

    fn mix(&mut self, number: u64) {
        self.hash = (self.hash.rotate_left(5) ^ number).wrapping_mul(0x517c_c1b7_2722_0a95);
    }
}
