//! The nodes of the run, and what is being done to each.

use crate::cluster::{Cluster, START_TIME_MAX};
use crate::networks::Networks;
use crate::operator::{Operator, POLL_INTERVAL};
use anyhow::{Context, bail};
use flotilla_types::Rng;
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

const DESCRIBED_MAX: usize = 40;
/// What a node's last words are if it learned that it was removed, and if it found nobody to join.
const REMOVED_WORDS: &str = "was removed";
const NOT_JOINED_WORDS: &str = "no member took this node in";

/// Where a node is in its life, as those know who drive it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Life {
    /// It is a member, or about to be.
    Member,
    /// It is no member; its process must not be started on the data it has.
    Out,
}

/// What all that breaks and changes the cluster share.
pub(super) struct World {
    pub(super) cluster: RefCell<Cluster>,
    pub(super) networks: Networks,
    lives: Vec<Cell<Life>>,
    /// Nodes that a fault is on, or that must be left alone by faults.
    impaired: Vec<Cell<bool>>,
    /// Nodes that an operator is at work on.
    taken: Vec<Cell<bool>>,
    /// Of the taken ones, those that hold less than their share.
    pub(super) away: Cell<usize>,
    pub(super) stop_faults: Cell<bool>,
    pub(super) stop_operators: Cell<bool>,
    events: RefCell<BTreeMap<&'static str, u64>>,
    told: RefCell<Vec<String>>,
    wrong: RefCell<Vec<String>>,
    began: Instant,
}

impl World {
    pub(super) fn new(cluster: Cluster, networks: Networks) -> World {
        let count = cluster.len();
        World {
            cluster: RefCell::new(cluster),
            networks,
            lives: (0..count).map(|_| Cell::new(Life::Member)).collect(),
            impaired: (0..count).map(|_| Cell::default()).collect(),
            taken: (0..count).map(|_| Cell::default()).collect(),
            away: Cell::default(),
            stop_faults: Cell::default(),
            stop_operators: Cell::default(),
            events: RefCell::default(),
            told: RefCell::default(),
            wrong: RefCell::default(),
            began: Instant::now(),
        }
    }

    pub(super) fn len(&self) -> usize {
        self.lives.len()
    }

    pub(super) fn name(&self, at: usize) -> String {
        self.cluster.borrow().spec(at).name.clone()
    }

    pub(super) fn addresses(&self) -> Vec<SocketAddr> {
        self.cluster.borrow().addresses()
    }

    /// One who asks all nodes but that one: a request may wait in one that stands still, and mean another node of the same name then.
    pub(super) fn operator_beside(&self, at: usize) -> Operator {
        let cluster = self.cluster.borrow();
        let others = (0..self.len()).filter(|other| *other != at).map(|other| cluster.spec(other).http);
        Operator::new(others.collect())
    }

    pub(super) fn count(&self, event: &'static str) {
        *self.events.borrow_mut().entry(event).or_default() += 1;
    }

    pub(super) fn events(&self) -> BTreeMap<&'static str, u64> {
        self.events.borrow().clone()
    }

    /// Notes what was done, with its time: read when something went wrong.
    pub(super) fn tell(&self, words: String) {
        let line = format!("{:.1} s: {words}", self.began.elapsed().as_secs_f64());
        eprintln!("{line}");
        self.told.borrow_mut().push(line);
    }

    pub(super) fn told(&self) -> Vec<String> {
        self.told.borrow().clone()
    }

    /// Notes what the product did and should not.
    pub(super) fn blame(&self, words: String) {
        self.tell(format!("WRONG: {words}"));
        let mut wrong = self.wrong.borrow_mut();
        if wrong.len() < DESCRIBED_MAX {
            wrong.push(words);
        }
    }

    pub(super) fn wrong(&self) -> Vec<String> {
        self.wrong.borrow().clone()
    }

    pub(super) fn life(&self, at: usize) -> Life {
        self.lives[at].get()
    }

    pub(super) fn set_life(&self, at: usize, life: Life) {
        self.lives[at].set(life);
    }

    pub(super) fn impaired_count(&self) -> usize {
        self.impaired.iter().filter(|impaired| impaired.get()).count()
    }

    /// A node that a fault may hit: none is on it, and it runs.
    pub(super) fn draw_for_fault(&self, rng: &mut Rng) -> Option<usize> {
        let free: Vec<usize> = (0..self.len()).filter(|at| !self.impaired[*at].get() && self.cluster.borrow().is_running(*at)).collect();
        let at = *rng.pick(&free)?;
        self.impaired[at].set(true);
        Some(at)
    }

    pub(super) fn free_of_fault(&self, at: usize) {
        self.impaired[at].set(false);
    }

    /// Waits until no fault is on the node, and keeps others from it until [`World::free_of_fault`].
    pub(super) async fn shield(&self, at: usize) {
        // Every fault has its end.
        while self.impaired[at].get() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        self.impaired[at].set(true);
    }

    /// A member that no operator is at work on.
    pub(super) fn draw_for_operator(&self, rng: &mut Rng) -> Option<usize> {
        let free: Vec<usize> = (0..self.len()).filter(|at| !self.taken[*at].get()).collect();
        let at = *rng.pick(&free)?;
        self.taken[at].set(true);
        Some(at)
    }

    pub(super) fn give_back(&self, at: usize) {
        self.taken[at].set(false);
    }

    /// Starts a node whose process has ended, if it is to run.
    pub(super) fn relaunch(&self, at: usize) -> anyhow::Result<()> {
        if self.life(at) == Life::Member { self.cluster.borrow_mut().launch(at) } else { Ok(()) }
    }

    /// Wipes a node that is no member, and starts it anew, until it is ready.
    pub(super) async fn join_anew(&self, at: usize) -> anyhow::Result<()> {
        {
            let mut cluster = self.cluster.borrow_mut();
            cluster.kill(at);
            let others = cluster.addresses().into_iter().enumerate().filter(|(other, _)| *other != at).map(|(_, address)| address);
            cluster.spec_mut(at).join = others.collect();
            let data_dir = cluster.spec(at).data_dir.clone();
            std::fs::remove_dir_all(&data_dir).with_context(|| format!("wiping {}", data_dir.display()))?;
            self.set_life(at, Life::Member);
            cluster.launch(at)?;
        }
        self.tell(format!("{} joins anew", self.name(at)));
        self.wait_ready(at).await
    }

    /// Waits until a node is ready, and starts it again when it ends though it is to run.
    async fn wait_ready(&self, at: usize) -> anyhow::Result<()> {
        let address = self.cluster.borrow().spec(at).http;
        let deadline = Instant::now() + 2 * START_TIME_MAX;
        while Instant::now() < deadline {
            let mut wire = crate::wire::Wire::new(address, Duration::from_secs(1));
            if wire.exchange("GET", "/readyz", b"").await.is_ok_and(|reply| reply.status == 200) {
                return Ok(());
            }
            self.mind(at)?;
            tokio::time::sleep(POLL_INTERVAL).await;
        }
        let tail = self.cluster.borrow().spec(at).output_tail();
        bail!("{} was not ready after {} s: {tail}", self.name(at), 2 * START_TIME_MAX.as_secs())
    }

    /// Sees to all that are nobody's business.
    pub(super) fn mind_all(&self) -> anyhow::Result<()> {
        (0..self.len()).filter(|at| !self.taken[*at].get() && !self.impaired[*at].get()).try_for_each(|at| self.mind(at))
    }

    /// Sees to a node whose process has ended by itself: one that was removed after all joins anew, one that found nobody to join
    /// tries again, and anything else is wrong.
    fn mind(&self, at: usize) -> anyhow::Result<()> {
        let tail = {
            let mut cluster = self.cluster.borrow_mut();
            if !cluster.is_running(at) || !cluster.has_ended(at) {
                return Ok(());
            }
            cluster.kill(at);
            cluster.spec(at).output_tail()
        };
        let name = self.name(at);
        let last = tail.lines().last().unwrap_or_default().to_owned();
        if last.contains(REMOVED_WORDS) {
            self.count("removed though nobody waited for it");
            self.tell(format!("{name} says that it was removed: {last}"));
            let data_dir = self.cluster.borrow().spec(at).data_dir.clone();
            std::fs::remove_dir_all(&data_dir).with_context(|| format!("wiping {}", data_dir.display()))?;
        } else if last.contains(NOT_JOINED_WORDS) {
            self.count("join given up by the node");
            self.tell(format!("{name} found nobody to join: {last}"));
        } else {
            self.blame(format!("{name} ended by itself: {tail}"));
        }
        self.relaunch(at)
    }
}
