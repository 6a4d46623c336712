//! The dashboard in a real browser: it must say in words what happens to the cluster, without being loaded again, and what is
//! written through its form must be what others read.

use crate::browser::{Browser, View, find_chromium};
use crate::cluster::{Cluster, flags, loopback_specs};
use crate::weather::Case;
use crate::wire::{Wire, WriteEnd};
use anyhow::{Context, ensure};
use flotilla::local_cluster::spawn_bound;
use serde_json::json;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// How long the page may take to say what has happened.
const NOTICE_TIME_MAX: Duration = Duration::from_secs(30);
/// How long the cluster may take to heal, and the page to say so.
const HEAL_TIME_MAX: Duration = Duration::from_secs(90);
/// How long traffic is made before the page is looked at; longer if it is to be drawn.
const TRAFFIC_TIME: Duration = Duration::from_secs(5);
const TRAFFIC_TIME_FOR_PICTURES: Duration = Duration::from_secs(90);
/// A picture in the documentation.
const PICTURE_BYTES_MAX: usize = 200_000;

const WIDE: u32 = 1280;
/// The narrowest window that the page is made for.
const NARROW: u32 = 360;

/// Nodes that the page shows as up.
const UP: &str = "document.querySelectorAll('.node.up').length";
const HEALTH: &str = "document.getElementById('health').innerText";
const KEY_RESULT: &str = "document.getElementById('key-result').innerText";

/// What the run leaves behind.
#[derive(Clone, Debug)]
pub struct DashboardPlan {
    /// Where pictures go, if they are wanted.
    pub screenshots: Option<PathBuf>,
}

/// Runs all of it, with everything in `folder`.
///
/// # Errors
/// If what is not under test fails.
pub async fn run(binary: &Path, folder: &Path, plan: &DashboardPlan) -> anyhow::Result<Vec<Case>> {
    // Before a cluster is started for nothing.
    find_chromium()?;
    let mut specs = loopback_specs(folder, 3)?;
    for (spec, zone) in specs.iter_mut().zip(["north", "north", "south"]) {
        spec.flags = flags(&["--zone", zone]);
    }
    let mut cluster = Cluster::start_of(binary, specs).await?;
    let mut browser = Browser::start(&folder.join("browser"))?;
    let mut trial = Trial { browser: &mut browser, plan, cases: Vec::new() };
    trial.well(&cluster)?;
    trial.keys(&cluster).await?;
    let mut traffic = Traffic::start(binary, &cluster)?;
    std::thread::sleep(if plan.screenshots.is_some() { TRAFFIC_TIME_FOR_PICTURES } else { TRAFFIC_TIME });
    trial.pictures("light")?;
    cluster.kill(2);
    trial.one_down()?;
    trial.pictures("dark")?;
    traffic.stop();
    cluster.relaunch_missing().await?;
    trial.healed("a node that was killed is back")?;
    cluster.kill(1);
    cluster.kill(2);
    trial.no_quorum()?;
    cluster.kill(0);
    trial.nobody()?;
    cluster.relaunch_missing().await?;
    trial.healed("all nodes were killed and are back")?;
    trial.unharmed()?;
    let cases = trial.cases;
    cluster.stop();
    Ok(cases)
}

/// What is looked at and found.
struct Trial<'a> {
    browser: &'a mut Browser,
    plan: &'a DashboardPlan,
    cases: Vec<Case>,
}

impl Trial<'_> {
    fn judge(&mut self, name: &'static str, found: anyhow::Result<String>) {
        let (fine, words) = match found {
            Ok(words) => (true, words),
            Err(error) => (false, format!("{error:#}")),
        };
        self.cases.push(Case { name, fine, words });
    }

    /// Waits until an expression is true; then the page's own words say what it shows.
    fn shows(&mut self, name: &'static str, expression: &str, words: &str, time_max: Duration) -> anyhow::Result<()> {
        let waited = self.browser.wait_until(expression, time_max);
        let text = self.browser.evaluate(words)?;
        let text = text.as_str().unwrap_or_default().split_whitespace().collect::<Vec<_>>().join(" ");
        self.judge(
            name,
            waited.map(|took| format!("{text:?} after {:.1} s", took.as_secs_f64())).with_context(|| format!("it shows {text:?}")),
        );
        Ok(())
    }

    fn well(&mut self, cluster: &Cluster) -> anyhow::Result<()> {
        self.browser.set_view(View { scheme: "light", width: WIDE })?;
        self.browser.open(&format!("http://{}/", cluster.addresses()[0]))?;
        self.shows("three nodes are up", &format!("{UP} === 3 && {HEALTH}.includes('All is well')"), HEALTH, NOTICE_TIME_MAX)?;
        // Gone if the page were loaded again.
        self.browser.evaluate("window.isFirstLoad = true")?;
        let all_answer = "document.querySelectorAll('.traffic figure').length === 6";
        self.shows("each node tells its traffic", all_answer, "document.querySelector('.traffic figcaption').innerText", NOTICE_TIME_MAX)?;
        let chosen = self.keyboard();
        self.judge("arrow keys go round the ring", chosen);
        Ok(())
    }

    fn one_down(&mut self) -> anyhow::Result<()> {
        let said = format!("{UP} === 2 && /n3 is down for \\d+ s: .*2 of 3 replicas/.test({HEALTH}) && window.isFirstLoad");
        self.shows("kill -9 of n3 is told in words", &said, HEALTH, NOTICE_TIME_MAX)
    }

    fn healed(&mut self, name: &'static str) -> anyhow::Result<()> {
        let said =
            format!("{UP} === 3 && {HEALTH}.includes('All is well') && document.getElementById('connection').hidden && window.isFirstLoad");
        self.shows(name, &said, HEALTH, HEAL_TIME_MAX)
    }

    fn no_quorum(&mut self) -> anyhow::Result<()> {
        let own_view = "document.getElementById('own-view')";
        let said = format!("{UP} === 1 && !{own_view}.hidden && {HEALTH}.includes('n1 cannot reach n2') && window.isFirstLoad");
        self.shows("without a majority it shows what n1 knows", &said, HEALTH, NOTICE_TIME_MAX)
    }

    fn nobody(&mut self) -> anyhow::Result<()> {
        let connection = "document.getElementById('connection')";
        let said = format!("!{connection}.hidden && {connection}.innerText.includes('does not answer') && window.isFirstLoad");
        self.shows("its own node is gone", &said, &format!("{connection}.innerText"), NOTICE_TIME_MAX)
    }

    fn unharmed(&mut self) -> anyhow::Result<()> {
        let faults = self.browser.faults().join("; ");
        self.judge(
            "nothing failed in the page's code",
            if faults.is_empty() { Ok("no exception".into()) } else { Err(anyhow::Error::msg(faults)) },
        );
        Ok(())
    }

    /// The ring is one stop of the Tab key; arrows go round it.
    fn keyboard(&mut self) -> anyhow::Result<String> {
        self.browser.evaluate("document.querySelector('#ring [tabindex=\"0\"]').focus()")?;
        for key in ["ArrowRight", "ArrowRight", "ArrowLeft"] {
            self.browser.press(key)?;
        }
        let focused = "document.activeElement.getAttribute('aria-label')";
        self.browser.wait_until(
            &format!("{focused}.startsWith('shard 1,') && document.getElementById('shard-number').value === '1'"),
            NOTICE_TIME_MAX,
        )?;
        Ok(self.browser.evaluate(focused)?.as_str().unwrap_or_default().to_owned())
    }

    async fn keys(&mut self, cluster: &Cluster) -> anyhow::Result<()> {
        // Another node than the page's.
        let mut other = Wire::new(cluster.addresses()[1], Duration::from_secs(5));
        for number in 1..=25 {
            other.put(format!("ship/{number:02}").as_bytes(), format!("crew of {}", 20 + number * 7 % 31).as_bytes()).await;
        }
        let written = self.write_text(&mut other).await;
        self.judge("a key written in the form is read over HTTP", written);
        let kept = self.rewrite_bytes(&mut other).await;
        self.judge("bytes that are no text stay as they are", kept);
        let deleted = self.delete(&mut other).await;
        self.judge("a key is deleted only after a yes", deleted);
        let paged = self.list();
        self.judge("a list of keys has pages", paged);
        Ok(())
    }

    async fn write_text(&mut self, other: &mut Wire) -> anyhow::Result<String> {
        let (key, value) = ("café/1 %2F?#", "naïve\n<b>\"text\"</b>");
        self.browser.type_into("key", key)?;
        self.browser.type_into("value", value)?;
        self.browser.click("#put")?;
        self.browser.wait_until(&format!("{KEY_RESULT}.includes('created')"), NOTICE_TIME_MAX)?;
        let read = other.get(key.as_bytes(), false).await?;
        ensure!(read.as_deref() == Some(value.as_bytes()), "HTTP gives {read:?}");
        self.browser.type_into("value", "")?;
        self.browser.click("#get")?;
        self.browser.wait_until(&format!("document.getElementById('value').value === {}", json!(value)), NOTICE_TIME_MAX)?;
        Ok(format!("{key:?} holds {value:?}, in the page and over HTTP"))
    }

    /// A key and a value that are not UTF-8 go through the page's list and form and back.
    async fn rewrite_bytes(&mut self, other: &mut Wire) -> anyhow::Result<String> {
        let (key, value) = (b"bytes/\xff\x00", b"\xef\xbb\xbf\r\n\xfe\x00");
        ensure!(other.put(key, value).await == WriteEnd::Done, "the key was not written");
        self.list_prefix("bytes/", 1)?;
        self.browser.click("#item-rows button")?;
        self.browser.wait_until(&format!("{KEY_RESULT}.includes('not UTF-8')"), NOTICE_TIME_MAX)?;
        self.browser.click("#put")?;
        self.browser.wait_until(&format!("{KEY_RESULT}.includes('replaced')"), NOTICE_TIME_MAX)?;
        let read = other.get(key, false).await?;
        ensure!(read.as_deref() == Some(&value[..]), "HTTP gives {read:?}");
        let shown = self.browser.evaluate("document.querySelector('#item-rows button').innerText")?;
        Ok(format!("{} was read, written back, and is the same", shown.as_str().unwrap_or_default()))
    }

    async fn delete(&mut self, other: &mut Wire) -> anyhow::Result<String> {
        let is_open = "document.getElementById('confirm').open";
        other.put(b"doomed", b"1").await;
        self.browser.type_into("key", "doomed")?;
        // The form was left in hex by the key before.
        self.browser.evaluate("document.getElementById('key-form-of').value = 'text'")?;
        self.browser.click("#delete")?;
        self.browser.wait_until(is_open, NOTICE_TIME_MAX)?;
        self.browser.click("#confirm-no")?;
        self.browser.wait_until(&format!("!{is_open}"), NOTICE_TIME_MAX)?;
        ensure!(other.get(b"doomed", false).await?.is_some(), "it was deleted though the answer was no");
        self.browser.click("#delete")?;
        self.browser.wait_until(is_open, NOTICE_TIME_MAX)?;
        self.browser.click("#confirm-yes")?;
        self.browser.wait_until(&format!("{KEY_RESULT}.includes('deleted')"), NOTICE_TIME_MAX)?;
        ensure!(other.get(b"doomed", false).await?.is_none(), "it is still there");
        self.browser.click("#get")?;
        self.browser.wait_until(&format!("{KEY_RESULT}.includes('there is no such key')"), NOTICE_TIME_MAX)?;
        Ok("no kept it, yes deleted it, and a get then shows the problem's detail".into())
    }

    fn list(&mut self) -> anyhow::Result<String> {
        self.list_prefix("ship/", 20)?;
        self.browser.click("#page-next")?;
        self.browser.wait_until(&rows_are(5), NOTICE_TIME_MAX)?;
        self.browser.click("#page-back")?;
        self.browser.wait_until(&rows_are(20), NOTICE_TIME_MAX)?;
        self.browser.click("#item-rows button")?;
        self.browser.wait_until(&format!("{KEY_RESULT}.includes('ship/01: version')"), NOTICE_TIME_MAX)?;
        // Fewer, for the pictures.
        self.list_prefix("ship/1", 10)?;
        Ok("25 keys on two pages, forth and back".into())
    }

    fn list_prefix(&mut self, prefix: &str, rows: usize) -> anyhow::Result<()> {
        self.browser.type_into("prefix", prefix)?;
        self.browser.click("#scan-form button")?;
        self.browser.wait_until(&rows_are(rows), NOTICE_TIME_MAX)?;
        Ok(())
    }

    /// Two pictures of each width, and whether all fits into it.
    fn pictures(&mut self, scheme: &'static str) -> anyhow::Result<()> {
        for (name, width) in [("wide", WIDE), ("narrow", NARROW)] {
            self.browser.set_view(View { scheme, width })?;
            // It draws anew at its next poll at the latest.
            std::thread::sleep(Duration::from_secs(3));
            let content = self.browser.evaluate("document.documentElement.scrollWidth")?;
            let fits = content.as_u64().is_some_and(|content| content <= u64::from(width));
            let words = format!("{scheme}, {width} px: the content is {content} px wide");
            self.judge("no scrolling sideways", if fits { Ok(words) } else { Err(anyhow::Error::msg(words)) });
            if let Some(folder) = &self.plan.screenshots {
                let saved = self.save_pictures(folder, &format!("{name}-{scheme}"), width);
                self.judge("pictures", saved);
            }
        }
        self.browser.set_view(View { scheme, width: WIDE })
    }

    fn save_pictures(&mut self, folder: &Path, name: &str, width: u32) -> anyhow::Result<String> {
        fs::create_dir_all(folder).with_context(|| format!("making {}", folder.display()))?;
        let top_of = |id: &str| format!("document.getElementById('{id}').getBoundingClientRect().top + scrollY - 16");
        let middle = self.browser.evaluate(&top_of("moves-title"))?.as_f64().context("a place in the page")?;
        let end = self.browser.evaluate("document.documentElement.scrollHeight")?.as_f64().context("a height")?;
        let mut saved = Vec::new();
        for (part, top, bottom) in [("cluster", 0.0, middle), ("traffic-and-keys", middle, end)] {
            let picture = self.browser.screenshot(width, top, bottom)?;
            let file = format!("{part}-{name}.png");
            ensure!(picture.len() <= PICTURE_BYTES_MAX, "{file} has {} bytes", picture.len());
            saved.push(format!("{file} {} kB", picture.len() / 1000));
            fs::write(folder.join(&file), picture).with_context(|| format!("writing {file}"))?;
        }
        Ok(saved.join(", "))
    }
}

fn rows_are(count: usize) -> String {
    format!("document.querySelectorAll('#item-rows tr').length === {count}")
}

/// A load generator beside all this, so that there is something to draw. Killed when dropped.
struct Traffic(Child);

impl Traffic {
    fn start(binary: &Path, cluster: &Cluster) -> anyhow::Result<Traffic> {
        let endpoints: Vec<String> = cluster.addresses().iter().map(|address| format!("http://{address}")).collect();
        let mut command = Command::new(binary);
        command.args([
            "bench",
            "mixed",
            "-c",
            "6",
            "--rate",
            "300",
            "--keys",
            "500",
            "--duration",
            "10m",
            "--endpoints",
            &endpoints.join(","),
        ]);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        Ok(Traffic(spawn_bound(&mut command).context("starting the load generator")?))
    }

    fn stop(&mut self) {
        // Both fail only if it has ended.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Drop for Traffic {
    fn drop(&mut self) {
        self.stop();
    }
}
