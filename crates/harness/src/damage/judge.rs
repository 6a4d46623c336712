//! What `flotilla check` said of a damage, and whether that is right.

use super::inflict::{Damage, Kind, Target};
use anyhow::{Context, ensure};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};
use std::process::Command;

/// What became of a damage to a stopped node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Fate {
    /// `check` named it as damage.
    Found,
    /// `check` noted it as an unfinished last write.
    Noted,
    /// It lies where nobody reads: `check` says how much of a file counts.
    Unused,
    /// It changed the number of a batch of the store's journal and left the order of the numbers as it was.
    OrderKept,
    /// The last journal was cut exactly behind a batch, and the log still has what is gone.
    CutBetweenBatches,
}

/// What a check found.
#[derive(Clone, Debug, Default)]
pub(super) struct Checked {
    pub(super) files: Vec<Target>,
    findings: Vec<Finding>,
}

#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
struct Finding {
    kind: String,
    file: PathBuf,
    from: u64,
    to: u64,
    what: String,
}

#[derive(Deserialize)]
struct FileLine {
    file: PathBuf,
    bytes: u64,
    bytes_used: u64,
}

impl Fate {
    /// In a report.
    pub fn words(self) -> &'static str {
        match self {
            Fate::Found => "found",
            Fate::Noted => "noted as an unfinished last write",
            Fate::Unused => "where nobody reads",
            Fate::OrderKept => "in a batch's number, its order kept",
            Fate::CutBetweenBatches => "cut exactly between batches that the log still has",
        }
    }
}

/// Runs `flotilla check --json`.
pub(super) fn check(binary: &Path, folder: &Path) -> anyhow::Result<Checked> {
    let output = Command::new(binary).args(["check", "--json", "--data-dir"]).arg(folder).output().context("running check")?;
    let (out, error) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    ensure!(matches!(output.status.code(), Some(0 | 1)) && error.is_empty(), "check ended with {}: {error}", output.status);
    let mut checked = Checked::default();
    for line in out.lines() {
        let value: serde_json::Value = serde_json::from_str(line).with_context(|| format!("a line of check: {line}"))?;
        match value["kind"].as_str() {
            Some("file") => {
                let FileLine { file, bytes, bytes_used } = serde_json::from_value(value)?;
                checked.files.push(Target { file, bytes, bytes_used });
            }
            Some("damage" | "note") => checked.findings.push(serde_json::from_value(value)?),
            _ => {}
        }
    }
    ensure!((output.status.code() == Some(1)) == (checked.damages() > 0), "check ended with {} and said: {out}", output.status);
    Ok(checked)
}

impl Checked {
    /// How many damages.
    pub(super) fn damages(&self) -> usize {
        self.findings.iter().filter(|finding| finding.kind == "damage").count()
    }

    /// Files with a finding.
    pub(super) fn damaged_files(&self) -> Vec<PathBuf> {
        self.findings.iter().map(|finding| finding.file.clone()).collect()
    }

    /// These findings, with what another check knew of the files: damage hides how much of a file counts.
    pub(super) fn with_files_of(self, other: Checked) -> Checked {
        Checked { files: other.files, findings: self.findings }
    }

    pub(super) fn findings_text(&self) -> String {
        let texts: Vec<String> =
            self.findings.iter().map(|f| format!("{} {} {}..{} {}", f.kind, f.file.display(), f.from, f.to, f.what)).collect();
        if texts.is_empty() { "nothing".to_owned() } else { texts.join(" | ") }
    }
}

/// What became of a damage; `None` if it went by. `around` stood around its place before, from 16 bytes ahead on.
pub(super) fn fate(damage: &Damage, before: &Checked, after: &Checked, around: &[u8]) -> Option<Fate> {
    let Target { file, bytes_used, .. } = &damage.target;
    // The list of tables is held against the file `current`: damage to one shows at the other.
    let is_current = file.ends_with("current");
    let is_about = |finding: &&Finding| {
        (finding.file == *file && finding.from <= damage.offset)
            || (is_current && finding.file.parent() == file.parent())
            // A file that was cut to nothing of its kind.
            || (damage.kind == Kind::Cut && finding.file == *file)
    };
    let news: Vec<&Finding> = after.findings.iter().filter(|finding| !before.findings.contains(finding)).collect();
    if news.iter().copied().filter(is_about).any(|finding| finding.kind == "damage") {
        return Some(Fate::Found);
    }
    let name = file.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let is_journal = name.ends_with(".jnl");
    if is_journal && news.iter().any(|finding| finding.kind == "damage" && finding.what.contains("the log begins after")) {
        // The file itself looks like one that a crash has left; what lay in it is missed.
        return Some(Fate::Found);
    }
    if news.iter().copied().filter(is_about).any(|finding| finding.kind == "note") {
        return Some(Fate::Noted);
    }
    if damage.offset >= *bytes_used {
        return Some(Fate::Unused);
    }
    match damage.kind {
        Kind::Flip { .. } if is_journal && is_in_number(damage.offset, around) => Some(Fate::OrderKept),
        Kind::Cut if is_journal => Some(Fate::CutBetweenBatches),
        _ => None,
    }
}

/// Whether the byte at `offset`, which stands behind the first 16 of `around` (fewer at a file's front), lies in the number
/// of a batch of a journal: behind `u8 1, u32 items`, and before an item, which begins with 2.
fn is_in_number(offset: u64, around: &[u8]) -> bool {
    let at = offset.min(16) as usize;
    (5..13).any(|ahead| at >= ahead && around[at - ahead] == 1 && around.get(at - ahead + 13) == Some(&2))
}

/// Writes the marker as a check advises: nobody else can know what belongs there.
pub(super) fn follow_advice(folder: &Path) -> anyhow::Result<()> {
    std::fs::write(folder.join("flotilla-data"), "flotilla data-dir, format 1\n").context("writing the marker")
}
