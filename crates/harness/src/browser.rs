//! A headless Chromium, driven over a pipe with its DevTools protocol: commands go in on its descriptor 3, answers and events
//! come out on 4, as JSON texts ended by a zero byte. Calls block; every one has an end.

use anyhow::{Context, bail, ensure};
use flotilla::local_cluster::spawn_bound;
use flotilla_api::base64;
use serde_json::{Value, json};
use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

/// Names that Chromium goes by.
const NAMES: [&str; 4] = ["chromium", "chromium-browser", "google-chrome", "chrome"];
/// How long the browser may take for one command.
const ANSWER_TIME_MAX: Duration = Duration::from_secs(30);
/// How long it may take to end after it was asked to.
const END_TIME_MAX: Duration = Duration::from_secs(10);
/// How often a page is asked whether something has come true.
const POLL_INTERVAL: Duration = Duration::from_millis(200);

/// A running browser with one page. Its process is killed when dropped.
pub struct Browser {
    process: Child,
    commands: ChildStdin,
    messages: Receiver<Value>,
    last_id: u64,
    session: Option<String>,
    /// What went wrong in the page's own code, and what its policy kept from it.
    faults: Vec<String>,
}

/// How a page is looked at.
#[derive(Clone, Copy, Debug)]
pub struct View {
    /// `light` or `dark`.
    pub scheme: &'static str,
    /// Of the window.
    pub width: u32,
}

/// Where Chromium is.
///
/// # Errors
/// If it is not on PATH; says what to install.
pub fn find_chromium() -> anyhow::Result<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut candidates = std::env::split_paths(&path).flat_map(|folder| NAMES.map(|name| folder.join(name)));
    candidates.find(|file| file.is_file()).context("no Chromium on PATH: apt-get install chromium")
}

impl Browser {
    /// Starts it with its profile in `folder`, and opens an empty page.
    ///
    /// # Errors
    /// If it is not there or does not come up.
    pub fn start(folder: &Path) -> anyhow::Result<Browser> {
        let chromium = find_chromium()?;
        let mut command = Command::new("sh");
        // Its descriptors 3 and 4 are what is 0 and 1 here.
        command.args(["-c", "exec \"$0\" \"$@\" 3<&0 4>&1 0</dev/null 1>/dev/null 2>/dev/null"]).arg(&chromium);
        command.args(["--headless=new", "--remote-debugging-pipe", "--no-first-run", "--disable-gpu", "--disable-lcd-text"]);
        command.args(["--hide-scrollbars", "--force-color-profile=srgb", "--disable-background-networking"]);
        command.arg(format!("--user-data-dir={}", folder.display())).arg("about:blank");
        if std::fs::metadata("/proc/self").is_ok_and(|process| process.uid() == 0) {
            // Its sandbox does not work for root.
            command.arg("--no-sandbox");
        }
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut process = spawn_bound(&mut command).with_context(|| format!("starting {}", chromium.display()))?;
        let commands = process.stdin.take().context("a pipe to the browser")?;
        let output = process.stdout.take().context("a pipe from the browser")?;
        let (sender, messages) = channel();
        std::thread::spawn(move || read_messages(output, &sender));
        let mut browser = Browser { process, commands, messages, last_id: 0, session: None, faults: Vec::new() };
        browser.attach()?;
        Ok(browser)
    }

    fn attach(&mut self) -> anyhow::Result<()> {
        let page = self.call("Target.createTarget", json!({"url": "about:blank"}))?;
        let attached = self.call("Target.attachToTarget", json!({"targetId": page["targetId"], "flatten": true}))?;
        self.session = attached["sessionId"].as_str().map(str::to_owned);
        for domain in ["Page.enable", "Runtime.enable", "Log.enable"] {
            self.call(domain, json!({}))?;
        }
        Ok(())
    }

    /// Goes to a page.
    ///
    /// # Errors
    /// If the browser does not answer.
    pub fn open(&mut self, url: &str) -> anyhow::Result<()> {
        let answer = self.call("Page.navigate", json!({"url": url}))?;
        ensure!(answer.get("errorText").is_none(), "{url}: {}", answer["errorText"]);
        Ok(())
    }

    /// The value of a JavaScript expression in the page; of a promise, what it comes to.
    ///
    /// # Errors
    /// If it throws, or the browser does not answer.
    pub fn evaluate(&mut self, expression: &str) -> anyhow::Result<Value> {
        let mut answer = self.call(
            "Runtime.evaluate",
            json!({"expression": expression, "awaitPromise": true, "returnByValue": true, "userGesture": true}),
        )?;
        ensure!(answer.get("exceptionDetails").is_none(), "{expression}: {}", answer["exceptionDetails"]["exception"]["description"]);
        Ok(answer["result"]["value"].take())
    }

    /// Waits until an expression is true in the page, and says how long that took.
    ///
    /// # Errors
    /// If that takes longer than `time_max`.
    pub fn wait_until(&mut self, expression: &str, time_max: Duration) -> anyhow::Result<Duration> {
        let began = Instant::now();
        while self.evaluate(expression)? != true {
            ensure!(began.elapsed() < time_max, "not within {} s: {expression}", time_max.as_secs());
            std::thread::sleep(POLL_INTERVAL);
        }
        Ok(began.elapsed())
    }

    /// Types a text into the element of that id, in place of what is there.
    ///
    /// # Errors
    /// If there is no such element, or the browser does not answer.
    pub fn type_into(&mut self, id: &str, text: &str) -> anyhow::Result<()> {
        self.evaluate(&format!("{{ const field = document.getElementById({}); field.focus(); field.select(); }}", json!(id)))?;
        if text.is_empty() {
            self.evaluate("document.execCommand('delete')")?;
        } else {
            self.call("Input.insertText", json!({"text": text}))?;
        }
        Ok(())
    }

    /// Presses what a CSS selector names.
    ///
    /// # Errors
    /// If there is nothing of that name, or the browser does not answer.
    pub fn click(&mut self, selector: &str) -> anyhow::Result<()> {
        self.evaluate(&format!("document.querySelector({}).click()", json!(selector)))?;
        Ok(())
    }

    /// Presses a key that writes nothing, such as `ArrowRight`.
    ///
    /// # Errors
    /// If the browser does not answer.
    pub fn press(&mut self, key: &str) -> anyhow::Result<()> {
        for kind in ["rawKeyDown", "keyUp"] {
            self.call("Input.dispatchKeyEvent", json!({"type": kind, "key": key, "code": key}))?;
        }
        Ok(())
    }

    /// Looks at the page in another way.
    ///
    /// # Errors
    /// If the browser does not answer.
    pub fn set_view(&mut self, view: View) -> anyhow::Result<()> {
        let metrics = json!({"width": view.width, "height": 900, "deviceScaleFactor": 1, "mobile": false});
        self.call("Emulation.setDeviceMetricsOverride", metrics)?;
        self.call("Emulation.setEmulatedMedia", json!({"features": [{"name": "prefers-color-scheme", "value": view.scheme}]}))?;
        Ok(())
    }

    /// A PNG of the page from `top` to `bottom`, in pixels from its upper end.
    ///
    /// # Errors
    /// If the browser does not answer.
    pub fn screenshot(&mut self, width: u32, top: f64, bottom: f64) -> anyhow::Result<Vec<u8>> {
        let clip = json!({"x": 0, "y": top, "width": width, "height": bottom - top, "scale": 1});
        let answer = self.call("Page.captureScreenshot", json!({"format": "png", "captureBeyondViewport": true, "clip": clip}))?;
        answer["data"].as_str().and_then(base64::decode).context("a picture in base64")
    }

    /// What went wrong in the page so far: exceptions, and what its policy forbade.
    pub fn faults(&mut self) -> &[String] {
        while let Ok(message) = self.messages.try_recv() {
            self.note_event(&message);
        }
        &self.faults
    }

    fn call(&mut self, method: &str, params: Value) -> anyhow::Result<Value> {
        self.last_id += 1;
        let mut command = json!({"id": self.last_id, "method": method, "params": params});
        if let Some(session) = &self.session {
            command["sessionId"] = session.as_str().into();
        }
        let mut text = command.to_string();
        text.push('\0');
        self.commands.write_all(text.as_bytes()).with_context(|| format!("asking the browser for {method}"))?;
        let deadline = Instant::now() + ANSWER_TIME_MAX;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let mut message = self.messages.recv_timeout(left).with_context(|| format!("the browser did not answer {method}"))?;
            if message["id"] == self.last_id {
                if let Some(error) = message.get("error") {
                    bail!("{method}: {error}");
                }
                return Ok(message["result"].take());
            }
            self.note_event(&message);
        }
    }

    fn note_event(&mut self, event: &Value) {
        let params = &event["params"];
        let mut fault = String::new();
        let written = match event["method"].as_str() {
            Some("Runtime.exceptionThrown") => write!(fault, "{}", params["exceptionDetails"]["exception"]["description"]),
            // That a node which was killed does not answer is no fault of the page.
            Some("Log.entryAdded") if params["entry"]["level"] == "error" && params["entry"]["source"] != "network" => {
                write!(fault, "{}", params["entry"]["text"])
            }
            _ => return,
        };
        if written.is_ok() {
            self.faults.push(fault);
        }
    }
}

fn read_messages(output: ChildStdout, sender: &Sender<Value>) {
    for message in BufReader::new(output).split(0) {
        let message = message.ok().and_then(|text| serde_json::from_slice(&text).ok());
        if message.is_none_or(|message| sender.send(message).is_err()) {
            return;
        }
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        // Asked to end, it ends its own children; killed, it leaves that to them.
        self.session = None;
        let _ = self.call("Browser.close", json!({}));
        let began = Instant::now();
        while matches!(self.process.try_wait(), Ok(None)) && began.elapsed() < END_TIME_MAX {
            std::thread::sleep(POLL_INTERVAL);
        }
        // Both fail only if it has ended.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
