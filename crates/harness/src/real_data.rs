//! Real data: what `apt-cache dumpavail` knows of every package, written over HTTP while a node is
//! killed and restarted; then every key is read from every node and compared with the source.

use crate::cluster::Cluster;
use crate::kill::verdict_line;
use crate::verify::{Expected, Verdict, verify};
use crate::wire::{Wire, WriteEnd};
use anyhow::{Context, ensure};
use serde::Serialize;
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use std::rc::Rc;
use std::time::{Duration, Instant};

/// A write whose outcome is unknown is written again here: putting the same value twice does no harm.
const ATTEMPTS_MAX: u32 = 60;
const RETRY_PAUSE: Duration = Duration::from_millis(250);

/// How the run goes.
#[derive(Clone, Debug)]
pub struct RealDataPlan {
    /// Connections that write.
    pub connections: usize,
    /// Of the packages, the first so many; `None`: all.
    pub packages_max: Option<usize>,
}

/// What was found.
#[derive(Clone, Debug, Serialize)]
pub struct RealDataReport {
    /// Packages written.
    pub packages: usize,
    /// Bytes of their descriptions.
    pub bytes: u64,
    /// Seconds the writing took, the kill included.
    pub write_seconds: f64,
    /// Writes sent again, since their first attempt was refused or its outcome unknown.
    pub retries: u64,
    /// Every key asked of every node.
    pub verdict: Verdict,
}

impl RealDataReport {
    /// The figures as lines of text.
    pub fn lines(&self) -> Vec<String> {
        let mib = self.bytes as f64 / f64::from(1 << 20);
        vec![
            format!(
                "{} packages, {mib:.1} MiB, written in {:.1} s while a node was killed and restarted; {} writes sent again",
                self.packages, self.write_seconds, self.retries
            ),
            verdict_line(&self.verdict),
        ]
        .into_iter()
        .chain(self.verdict.described.clone())
        .collect()
    }
}

/// Every package by name; of several stanzas of one name the last counts.
///
/// # Errors
/// If there is no apt on this machine, or it knows no packages.
pub fn packages() -> anyhow::Result<BTreeMap<Vec<u8>, Vec<u8>>> {
    let output = Command::new("apt-cache").arg("dumpavail").output().context("running apt-cache dumpavail")?;
    let packages = parse_stanzas(&output.stdout);
    ensure!(!packages.is_empty(), "apt-cache dumpavail knows no packages");
    Ok(packages)
}

fn parse_stanzas(text: &[u8]) -> BTreeMap<Vec<u8>, Vec<u8>> {
    let mut packages = BTreeMap::new();
    let mut stanza: Vec<u8> = Vec::new();
    for line in text.split(|&byte| byte == b'\n').chain([&b""[..]]) {
        if !line.is_empty() {
            stanza.extend_from_slice(line);
            stanza.push(b'\n');
            continue;
        }
        let stanza = std::mem::take(&mut stanza);
        if let Some(name) = stanza.split(|&byte| byte == b'\n').find_map(|line| line.strip_prefix(b"Package: ")) {
            let name = name.to_vec();
            packages.insert(name, stanza);
        }
    }
    packages
}

/// Runs it on three nodes with their data in `folder`.
///
/// # Errors
/// If the cluster does not start, or a key cannot be written.
pub async fn run(binary: &Path, folder: &Path, plan: &RealDataPlan) -> anyhow::Result<RealDataReport> {
    let source: Vec<(Vec<u8>, Vec<u8>)> = packages()?.into_iter().take(plan.packages_max.unwrap_or(usize::MAX)).collect();
    let source = Rc::new(source);
    let mut cluster = Cluster::start(binary, folder).await?;
    let addresses = cluster.addresses();
    let (next, retries, failed) = (Rc::new(Cell::new(0usize)), Rc::new(Cell::new(0u64)), Rc::new(RefCell::new(None)));
    let started = Instant::now();
    let tasks: Vec<_> = (0..plan.connections)
        .map(|index| {
            let (source, addresses, next, retries, failed) =
                (source.clone(), addresses.clone(), next.clone(), retries.clone(), failed.clone());
            tokio::task::spawn_local(async move {
                let mut at = index % addresses.len();
                let mut wire = Wire::new(addresses[at], Duration::from_secs(5));
                while next.get() < source.len() && failed.borrow().is_none() {
                    let (key, value) = &source[next.replace(next.get() + 1)];
                    let mut attempts = 0;
                    while wire.put(key, value).await != WriteEnd::Done {
                        (attempts, at) = (attempts + 1, (at + 1) % addresses.len());
                        retries.set(retries.get() + 1);
                        wire.turn_to(addresses[at]);
                        if attempts == ATTEMPTS_MAX {
                            *failed.borrow_mut() = Some(key.escape_ascii().to_string());
                            return;
                        }
                        tokio::time::sleep(RETRY_PAUSE).await;
                    }
                }
            })
        })
        .collect();
    // Killed once a quarter is written, restarted at the half.
    wait_until(|| next.get() * 4 >= source.len()).await;
    cluster.kill(1);
    wait_until(|| next.get() * 2 >= source.len() || failed.borrow().is_some()).await;
    cluster.launch(1)?;
    for task in tasks {
        task.await.expect("a writer does not panic");
    }
    let write_seconds = started.elapsed().as_secs_f64();
    if let Some(key) = failed.borrow().as_ref() {
        anyhow::bail!("{key} could not be written in {ATTEMPTS_MAX} attempts");
    }
    cluster.wait_ready(1).await?;
    cluster.wait_settled().await?;
    let bytes = source.iter().map(|(_, value)| value.len() as u64).sum();
    let expected = Rc::new(source.iter().map(|(key, value)| (key.clone(), Expected::Value(value.clone()))).collect());
    let verdict = verify(&addresses, &expected, false).await;
    cluster.stop();
    Ok(RealDataReport { packages: source.len(), bytes, write_seconds, retries: retries.get(), verdict })
}

async fn wait_until(reached: impl Fn() -> bool) {
    while !reached() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_stanza_of_a_name_counts() {
        let packages = parse_stanzas(b"Package: a\nVersion: 1\n\nPackage: b\nVersion: 1\n\n\nPackage: a\nVersion: 2\n");
        assert_eq!(packages.len(), 2);
        assert_eq!(packages[&b"a"[..]], b"Package: a\nVersion: 2\n");
    }
}
