//! Starts that cannot go well: each must end soon, with the right exit code and one line that says
//! what is wrong, and must leave what is on disk as it was.

use crate::cluster::{Cluster, flags};
use crate::power::LoopDisk;
use crate::wire::Wire;
use anyhow::{Context, ensure};
use flotilla::local_cluster::{NodeSpec, free_addresses};
use serde::Serialize;
use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::time::{Duration, Instant};

/// How long a start that cannot go well may take, unless it is about waiting.
const REFUSAL_TIME_MAX: Duration = Duration::from_secs(20);
/// `--join` is tried for 60 s.
const JOIN_TIME_MAX: Duration = Duration::from_secs(80);

/// One case and what came of it.
#[derive(Clone, Debug, Serialize)]
pub struct Case {
    /// What was wrong.
    pub name: &'static str,
    /// Whether the node behaved.
    pub fine: bool,
    /// What it said, or what is wrong with how it behaved.
    pub words: String,
}

/// How a case is judged.
struct Expectation {
    exit_code: i32,
    /// One of these must be in what it says, in small letters.
    any_of: &'static [&'static str],
    time_max: Duration,
}

const fn refused(any_of: &'static [&'static str]) -> Expectation {
    Expectation { exit_code: 1, any_of, time_max: REFUSAL_TIME_MAX }
}

/// Tries every case, with everything in `folder`; `slow` includes those that wait a minute, and those
/// that need root.
///
/// # Errors
/// If what is not under test fails.
pub async fn run(binary: &Path, folder: &Path, slow: bool) -> anyhow::Result<Vec<Case>> {
    let mut cluster = Cluster::start(binary, folder).await?;
    let member = cluster.addresses()[0];
    let trial = Trial { binary, folder };
    let mut cases = Vec::new();

    let locked = NodeSpec { data_dir: cluster.spec(0).data_dir.clone(), ..trial.spec("locked")? };
    cases.push(trial.judge("data folder in use", &locked, refused(&["lock", "in use", "another process"])).await?);

    let mut taken = NodeSpec { data_dir: folder.join("taken"), ..trial.spec("n2")? };
    taken.join = vec![member];
    cases.push(trial.judge("name of a live node", &taken, refused(&["name", "taken", "already"])).await?);

    let mut occupied = trial.spec("occupied")?;
    occupied.http = member;
    cases.push(trial.judge("address in use", &occupied, refused(&["in use"])).await?);

    let mut open = trial.spec("open")?;
    open.http = ([0, 0, 0, 0], open.http.port()).into();
    cases.push(trial.judge("not on loopback without --insecure", &open, Expectation { exit_code: 2, ..refused(&["--insecure"]) }).await?);

    let file = folder.join("a-file");
    fs::write(&file, "not a folder")?;
    let on_file = NodeSpec { data_dir: file, ..trial.spec("onfile")? };
    cases.push(trial.judge("data folder is a file", &on_file, refused(&["a-file"])).await?);

    // A node of one cluster is told to join another.
    let foreign = trial.spec("foreign")?;
    trial.live_once(&foreign).await?;
    let foreign = NodeSpec { join: vec![member], ..foreign };
    cases.push(trial.judge("data of another cluster", &foreign, refused(&["another cluster", "other cluster", "belongs"])).await?);

    // A wiped node under its old name.
    cluster.kill(2);
    wait_down(&cluster, &cluster.spec(2).name).await?;
    let wiped = NodeSpec { data_dir: folder.join("wiped"), ..cluster.spec(2).clone() };
    cases.push(trial.judge("wiped node under its old name", &wiped, refused(&["--replace"])).await?);
    cluster.launch(2)?;
    cluster.wait_ready(2).await?;

    for (name, damage) in [("damaged log", Damage::FlipBytes), ("newer format", Damage::RaiseFormat)] {
        let victim = trial.spec(if damage == Damage::FlipBytes { "damaged" } else { "newer" })?;
        trial.live_once(&victim).await?;
        match damage.inflict(&victim.data_dir)? {
            true => cases.push(trial.judge(name, &victim, refused(damage.words())).await?),
            false => cases.push(Case { name, fine: false, words: "there was no file to damage".to_owned() }),
        }
    }

    let mut silent = trial.spec("silent")?;
    let other = TcpListener::bind("127.0.0.1:0")?;
    silent.join = vec![other.local_addr()?];
    std::thread::spawn(move || answer_something_else(&other));
    let patient = |any_of| Expectation { time_max: JOIN_TIME_MAX, ..refused(any_of) };
    if slow {
        cases.push(trial.judge("--join answers something else", &silent, patient(&["join", "not a flotilla", "no flotilla"])).await?);
        let mut lonely = trial.spec("lonely")?;
        lonely.join = vec![free_addresses(1, None)?[0]];
        cases.push(trial.judge("--join answers nobody", &lonely, patient(&["join", "60"])).await?);
        cases.push(trial.full_disk().await?);
        cases.push(trial.not_writable().await?);
    }
    cases.push(Case { name: "the cluster beside all this", fine: true, words: "unharmed".to_owned() });
    if let Some(last) = cases.last_mut() {
        let ended = cluster.unexpectedly_ended();
        if !ended.is_empty() {
            (last.fine, last.words) = (false, ended.join("; "));
        }
    }
    cluster.stop();
    Ok(cases)
}

#[derive(Clone, Copy, PartialEq)]
enum Damage {
    FlipBytes,
    RaiseFormat,
}

impl Damage {
    fn words(self) -> &'static [&'static str] {
        match self {
            Damage::FlipBytes => &["damage", "corrupt", "checksum"],
            Damage::RaiseFormat => &["format", "newer", "version"],
        }
    }

    /// Changes what is on disk; says whether there was such a file.
    fn inflict(self, data_dir: &Path) -> anyhow::Result<bool> {
        if self == Damage::RaiseFormat {
            // The line of the whole data folder; docs/formats.md draws it.
            let marker = data_dir.join("flotilla-data");
            let there = marker.is_file();
            fs::write(&marker, "flotilla data-dir, format 99\n")?;
            return Ok(there);
        }
        let mut files = files_below(&data_dir.join("log"))?;
        files.sort();
        let Some(file) = files.into_iter().find(|path| fs::metadata(path).is_ok_and(|meta| meta.len() > 4096)) else { return Ok(false) };
        let mut bytes = fs::read(&file)?;
        // In the middle of what was written: after it there is more, so it was once whole.
        let written = bytes.iter().rposition(|&byte| byte != 0).unwrap_or(0);
        bytes[written / 2..written / 2 + 16].iter_mut().for_each(|byte| *byte ^= 0xFF);
        fs::write(&file, bytes)?;
        Ok(true)
    }
}

struct Trial<'a> {
    binary: &'a Path,
    folder: &'a Path,
}

impl Trial<'_> {
    fn spec(&self, name: &str) -> anyhow::Result<NodeSpec> {
        let addresses = free_addresses(2, None).context("looking for free ports")?;
        Ok(NodeSpec { flags: flags(&["--shards", "4"]), ..NodeSpec::new(name, self.folder, addresses[0], addresses[1], Vec::new()) })
    }

    /// Makes a cluster of one node with a little data, and stops it by kill -9.
    async fn live_once(&self, spec: &NodeSpec) -> anyhow::Result<()> {
        let mut alone = Cluster::start_of(self.binary, vec![spec.clone()]).await?;
        let mut wire = Wire::new(spec.http, Duration::from_secs(5));
        for number in 0..200 {
            wire.put(format!("key-{number}").as_bytes(), &[b'v'; 100]).await;
        }
        alone.kill(0);
        Ok(())
    }

    async fn judge(&self, name: &'static str, spec: &NodeSpec, expected: Expectation) -> anyhow::Result<Case> {
        let before = fs::read(&spec.output).map(|bytes| bytes.len()).unwrap_or(0);
        let status = self.end_of(spec, expected.time_max).await?;
        let said = String::from_utf8_lossy(&fs::read(&spec.output)?[before..]).into_owned();
        let lines: Vec<&str> = said.lines().filter(|line| !line.trim().is_empty()).collect();
        let wrong = match status {
            None => Some(format!("it still ran after {:?}", expected.time_max)),
            Some(status) if status.code() != Some(expected.exit_code) => Some(format!("it ended with {status}")),
            Some(_) if lines.len() != 1 => Some(format!("it said {} lines", lines.len())),
            Some(_) if !expected.any_of.iter().any(|words| said.to_lowercase().contains(words)) => {
                Some(format!("it says none of {:?}", expected.any_of))
            }
            Some(_) => None,
        };
        let said = lines.join(" | ");
        Ok(Case { name, fine: wrong.is_none(), words: wrong.map_or_else(|| said.clone(), |wrong| format!("{wrong}: {said}")) })
    }

    /// How it ended, if it did within `time_max`.
    async fn end_of(&self, spec: &NodeSpec, time_max: Duration) -> anyhow::Result<Option<ExitStatus>> {
        let mut process = spec.start(self.binary)?;
        let deadline = Instant::now() + time_max;
        while Instant::now() < deadline {
            if let Some(status) = process.ended()? {
                return Ok(Some(status));
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok(None)
    }

    /// A disk that fills up under a running node: puts get 507 and nothing else stops, a restart works,
    /// and with room again puts are taken by themselves.
    async fn full_disk(&self) -> anyhow::Result<Case> {
        const NAME: &str = "full disk";
        let mount_point = self.folder.join("small.disk");
        let _disk = LoopDisk::create(&self.folder.join("small.img"), &mount_point, 320 << 20)?;
        let mut spec = self.spec("full")?;
        spec.data_dir = mount_point.join("data");
        let mut alone = Cluster::start_of(self.binary, vec![spec.clone()]).await?;
        let mut wire = Wire::new(spec.http, Duration::from_secs(5));
        let path = |number: u32| format!("/v1/kv/key-{number}");
        let mut acknowledged = 0u32;
        while acknowledged < 20 {
            ensure!(status_of(&mut wire, "PUT", &path(acknowledged)).await < 300, "a put with room on the disk");
            acknowledged += 1;
        }
        let ballast = mount_point.join("ballast");
        fill_disk(&ballast)?;
        let mut words = Vec::new();
        // Puts are taken until the node has looked at its disk.
        let refused = loop {
            match status_of(&mut wire, "PUT", &path(acknowledged)).await {
                200..300 if acknowledged < 5_000 => acknowledged += 1,
                status => break status,
            }
        };
        let mut demand = |what: &str, found: u16, wanted: u16| {
            if found != wanted {
                words.push(format!("{what} was answered {found}, not {wanted}"));
            }
        };
        demand("a put without room", refused, 507);
        demand("an increment without room", status_of(&mut wire, "POST", "/v1/kv/counter/incr").await, 507);
        demand("a get without room", status_of(&mut wire, "GET", &path(1)).await, 200);
        demand("a delete without room", status_of(&mut wire, "DELETE", &path(0)).await, 200);
        alone.kill(0);
        alone.launch(0)?;
        alone.wait_ready(0).await?;
        wire.turn_to(spec.http);
        demand("a get after a restart without room", status_of(&mut wire, "GET", &path(1)).await, 200);
        fs::remove_file(&ballast)?;
        let deadline = Instant::now() + REFUSAL_TIME_MAX;
        let mut taken = 0;
        while taken / 100 != 2 && Instant::now() < deadline {
            tokio::time::sleep(Duration::from_millis(50)).await;
            taken = status_of(&mut wire, "PUT", &path(0)).await / 100 * 100;
        }
        demand("a put with room again", taken, 200);
        for number in 0..acknowledged {
            demand("a get at the end", status_of(&mut wire, "GET", &path(number)).await, 200);
        }
        let fine = words.is_empty();
        let told = format!("{acknowledged} writes acknowledged and kept, then 507; deletes, reads and a restart went on, then puts too");
        Ok(Case { name: NAME, fine, words: if fine { told } else { words.join("; ") } })
    }

    /// Root may write anywhere, so the folder lies on a file system mounted for reading.
    async fn not_writable(&self) -> anyhow::Result<Case> {
        let mount_point = self.folder.join("readonly.disk");
        let _disk = LoopDisk::create(&self.folder.join("readonly.img"), &mount_point, 64 << 20)?;
        fs::set_permissions(&mount_point, fs::Permissions::from_mode(0o555))?;
        crate::power::run("mount", &["-o", "remount,ro", &mount_point.to_string_lossy()])?;
        let spec = NodeSpec { data_dir: mount_point.join("data"), ..self.spec("readonly")? };
        self.judge("data folder not writable", &spec, refused(&["read-only", "permission", "readonly.disk"])).await
    }
}

/// The status of one exchange, 0 if there was no answer; a body goes with what writes.
async fn status_of(wire: &mut Wire, method: &str, path: &str) -> u16 {
    let body: &[u8] = if method == "PUT" { &[b'v'; 1000] } else { b"" };
    wire.exchange(method, path, body).await.map_or(0, |reply| reply.status)
}

/// Waits until the others hold the node for dead.
async fn wait_down(cluster: &Cluster, name: &str) -> anyhow::Result<()> {
    let deadline = Instant::now() + Duration::from_secs(60);
    while Instant::now() < deadline {
        if let Ok(body) = cluster.client().fetch("/v1/cluster").await {
            let view: flotilla::cluster_view::ClusterView = serde_json::from_slice(&body)?;
            if view.node(name).is_some_and(|node| node.state == "down") {
                return Ok(());
            }
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    anyhow::bail!("{name} was killed and is not held for dead after a minute")
}

fn fill_disk(ballast: &Path) -> anyhow::Result<()> {
    use std::io::Write;
    let mut file = fs::File::create(ballast)?;
    let block = vec![1u8; 1 << 20];
    while file.write_all(&block).is_ok() {}
    // Some room stays, so that the disk fills under writes and not before them.
    let length = file.metadata()?.len();
    ensure!(length > 8 << 20, "the small disk has no room");
    file.set_len(length - (8 << 20))?;
    Ok(())
}

fn files_below(folder: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() { files.extend(files_below(&path)?) } else { files.push(path) }
    }
    Ok(files)
}

fn answer_something_else(listener: &TcpListener) {
    use std::io::{Read, Write};
    for stream in listener.incoming() {
        let Ok(mut stream) = stream else { return };
        let _ = stream.read(&mut [0; 4096]);
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\nconnection: close\r\n\r\nhello");
    }
}
