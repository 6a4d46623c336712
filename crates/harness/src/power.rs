//! Power loss: each node's data lies on a file system of its own, which is shut down in an instant
//! (`EXT4_IOC_SHUTDOWN` without flushing its journal). What was not synced is gone, as after a real
//! power cut; what a lying disk would do is for the simulated one in `crates/sim` to show.
//!
//! With `no_sync` the nodes run with fdatasync made to do nothing to the log's files, by a small library
//! that is loaded ahead of libc: then the run must fail, or it would prove nothing.
#![allow(unsafe_code, reason = "the shutdown ioctl has no safe face in std")]

use crate::cluster::{Cluster, loopback_specs};
use crate::kill::verdict_line;
use crate::verify::{Verdict, expectations, verify, verify_own_copies};
use crate::writers::{WriterPlan, Writers};
use anyhow::{Context, ensure};
use serde::Serialize;
use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::rc::Rc;
use std::time::Duration;

/// `_IOR('X', 125, __u32)`: the same for ext4, xfs and f2fs.
const FS_IOC_SHUTDOWN: libc::c_ulong = 0x8004_587D;
/// Nothing of the journal is written any more.
const SHUTDOWN_NO_LOG_FLUSH: u32 = 2;
/// Size of each node's file system; sparse, so that only what is used is there.
const DISK_BYTES: u64 = 4 << 30;

/// How the run goes.
#[derive(Clone, Debug)]
pub struct PowerPlan {
    /// Power cuts of all nodes at once.
    pub cuts_of_all: usize,
    /// Power cuts of one node; they take turns.
    pub cuts_of_one: usize,
    /// Writes go on for so long before each cut.
    pub load: Duration,
    /// Run the nodes with syncs that do nothing.
    pub no_sync: bool,
}

/// What was found.
#[derive(Clone, Debug, Serialize)]
pub struct PowerReport {
    /// Cuts of all nodes at once.
    pub cuts_of_all: usize,
    /// Cuts of one node.
    pub cuts_of_one: usize,
    /// Whether syncs did nothing.
    pub no_sync: bool,
    /// Writes acknowledged, over all rounds.
    pub acknowledged: usize,
    /// Writes whose outcome is unknown.
    pub unknown: usize,
    /// Rounds after which something was lost, wrong, or did not start, in words.
    pub failed_rounds: Vec<String>,
    /// All writes of the run at its end: the newest values, asked of every node.
    pub linearizable: Option<Verdict>,
    /// All writes of the run at its end: each node's own copy.
    pub own_copies: Option<Verdict>,
}

impl PowerReport {
    /// Whether nothing was lost.
    pub fn is_fine(&self) -> bool {
        self.failed_rounds.is_empty()
            && self.linearizable.as_ref().is_some_and(Verdict::is_fine)
            && self.own_copies.as_ref().is_none_or(Verdict::is_fine)
    }

    /// The figures as lines of text.
    pub fn lines(&self) -> Vec<String> {
        let syncs = if self.no_sync { ", syncs of the log did nothing" } else { "" };
        let mut lines = vec![format!(
            "{} power cuts of all nodes, {} of one{syncs}: {} writes acknowledged, {} unknown",
            self.cuts_of_all, self.cuts_of_one, self.acknowledged, self.unknown
        )];
        for (name, verdict) in [("newest values", &self.linearizable), ("own copies", &self.own_copies)] {
            lines.push(format!("{name}: {}", verdict.as_ref().map_or_else(|| "not asked".to_owned(), verdict_line)));
            lines.extend(verdict.iter().flat_map(|verdict| verdict.described.clone()));
        }
        lines.extend(self.failed_rounds.clone());
        lines
    }
}

/// A file with a file system in it, mounted; unmounted when dropped.
#[derive(Debug)]
pub struct LoopDisk {
    image: PathBuf,
    mount_point: PathBuf,
}

impl LoopDisk {
    /// Makes one of `bytes` and mounts it at `mount_point`.
    ///
    /// # Errors
    /// If a command fails; root is needed.
    pub fn create(image: &Path, mount_point: &Path, bytes: u64) -> anyhow::Result<LoopDisk> {
        File::create(image)?.set_len(bytes)?;
        fs::create_dir_all(mount_point)?;
        run("mkfs.ext4", &["-q", "-F", &image.to_string_lossy()])?;
        let disk = LoopDisk { image: image.to_owned(), mount_point: mount_point.to_owned() };
        disk.mount()?;
        Ok(disk)
    }

    fn mount(&self) -> anyhow::Result<()> {
        run("mount", &["-o", "loop", &self.image.to_string_lossy(), &self.mount_point.to_string_lossy()])
    }

    /// From now on nothing reaches the image.
    ///
    /// # Errors
    /// Those of the ioctl.
    pub fn cut_power(&self) -> anyhow::Result<()> {
        let root = File::open(&self.mount_point)?;
        // SAFETY: the ioctl reads one u32, which lives through the call.
        let result = unsafe { libc::ioctl(root.as_raw_fd(), FS_IOC_SHUTDOWN, &SHUTDOWN_NO_LOG_FLUSH) };
        ensure!(result == 0, "shutting down {}: {}", self.mount_point.display(), std::io::Error::last_os_error());
        Ok(())
    }

    /// What a machine does when it comes up: checks the file system, replaying its journal, and mounts it.
    ///
    /// # Errors
    /// If a command fails.
    pub fn restore_power(&self) -> anyhow::Result<()> {
        run("umount", &[&self.mount_point.to_string_lossy()])?;
        let status = Command::new("e2fsck").args(["-p"]).arg(&self.image).output().context("running e2fsck")?;
        // 1: errors were corrected, which replaying the journal can be.
        ensure!(matches!(status.status.code(), Some(0 | 1)), "e2fsck: {}", String::from_utf8_lossy(&status.stdout));
        self.mount()
    }
}

impl Drop for LoopDisk {
    fn drop(&mut self) {
        // Lazily, so that a process still ending does not keep it for ever.
        let _ = run("umount", &["-l", &self.mount_point.to_string_lossy()]);
    }
}

/// Runs a command that must succeed.
///
/// # Errors
/// With what it wrote, if it does not.
pub fn run(program: &str, arguments: &[&str]) -> anyhow::Result<()> {
    let output = Command::new(program).args(arguments).output().with_context(|| format!("running {program}"))?;
    ensure!(output.status.success(), "{program} {}: {}", arguments.join(" "), String::from_utf8_lossy(&output.stderr).trim());
    Ok(())
}

/// Runs it, with everything in `folder`. Needs root.
///
/// # Errors
/// If the machine does not let it mount, or the cluster does not start in the first place.
pub async fn run_power(binary: &Path, folder: &Path, plan: &PowerPlan) -> anyhow::Result<PowerReport> {
    let mut specs = loopback_specs(folder, 3)?;
    let mut disks = Vec::new();
    for spec in &mut specs {
        let mount_point = folder.join(format!("{}.disk", spec.name));
        disks.push(LoopDisk::create(&folder.join(format!("{}.img", spec.name)), &mount_point, DISK_BYTES)?);
        spec.data_dir = mount_point.join("data");
        if plan.no_sync {
            spec.environment.push(("LD_PRELOAD".into(), library_without_sync(folder)?.into()));
        }
    }
    let mut cluster = Cluster::start_of(binary, specs).await?;
    let shards = cluster.wait_settled().await?.shards_total;
    let writer_plan = WriterPlan::new(cluster.addresses(), shards);
    let mut report = PowerReport {
        cuts_of_all: plan.cuts_of_all,
        cuts_of_one: plan.cuts_of_one,
        no_sync: plan.no_sync,
        acknowledged: 0,
        unknown: 0,
        failed_rounds: Vec::new(),
        linearizable: None,
        own_copies: None,
    };
    let mut expected = Vec::new();
    for round in 0..plan.cuts_of_all + plan.cuts_of_one {
        let victims: Vec<usize> = if round < plan.cuts_of_all { (0..cluster.len()).collect() } else { vec![round % cluster.len()] };
        // Each round has keys of its own: it writes as other writers than all before.
        let writers = Writers::start_numbered(writer_plan.clone(), round as u32);
        tokio::time::sleep(plan.load).await;
        for &victim in &victims {
            disks[victim].cut_power()?;
        }
        for &victim in &victims {
            cluster.kill(victim);
        }
        if victims.len() < cluster.len() {
            tokio::time::sleep(plan.load).await;
        }
        let (writer_plan, tags, record) = writers.stop().await;
        (report.acknowledged, report.unknown) = (report.acknowledged + record.acknowledged.len(), report.unknown + record.unknown.len());
        let round_expected = expectations(&writer_plan, &tags, &record);
        for &victim in &victims {
            disks[victim].restore_power()?;
            cluster.launch(victim)?;
        }
        let come_back = async {
            cluster.wait_all_ready().await?;
            cluster.wait_settled().await
        };
        if let Err(error) = come_back.await {
            report.failed_rounds.push(format!("round {round}: the cluster did not come back: {error:#}"));
            return Ok(report);
        }
        let round_expected = Rc::new(round_expected);
        let verdict = verify(&cluster.addresses(), &round_expected, false).await;
        if !verdict.is_fine() {
            report.failed_rounds.push(format!("round {round}: {}: {}", verdict_line(&verdict), verdict.described.join("; ")));
        }
        expected.extend(Rc::try_unwrap(round_expected).expect("the readers have ended"));
        // A run that is meant to fail need not go on once it has.
        if plan.no_sync && !report.failed_rounds.is_empty() {
            break;
        }
    }
    let expected = Rc::new(expected);
    report.linearizable = Some(verify(&cluster.addresses(), &expected, false).await);
    report.own_copies = verify_own_copies(&cluster.addresses(), &expected).await;
    cluster.stop();
    Ok(report)
}

/// Compiles a library in which fdatasync does nothing to files of the Raft log, so that the product needs
/// no such switch.
fn library_without_sync(folder: &Path) -> anyhow::Result<PathBuf> {
    const SOURCE: &str = r#"
        #include <stdio.h>
        #include <string.h>
        #include <sys/syscall.h>
        #include <unistd.h>
        int fdatasync(int fd) {
            char link[64], path[4096];
            snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
            ssize_t length = readlink(link, path, sizeof path - 1);
            if (length > 0) {
                path[length] = 0;
                if (strstr(path, "/log/")) return 0;
            }
            return (int)syscall(SYS_fdatasync, fd);
        }
    "#;
    let (source, library) = (folder.join("nosync.c"), folder.join("nosync.so"));
    fs::write(&source, SOURCE)?;
    run("cc", &["-shared", "-fPIC", "-o", &library.to_string_lossy(), &source.to_string_lossy()])?;
    Ok(library)
}
