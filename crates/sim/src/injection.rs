//! What is done to the machines and links: which fault comes next, to whom, for how long, and how
//! all of it is taken back.

use crate::coverage::Fault;
use crate::history::Moment;
use crate::network::{HostNumber, Pipe};
use crate::scenario::Family;
use crate::verdict;
use crate::world::{Happening, Waiting, World};
use flotilla_node::admin::{AdminAction, AdminRequest};
use flotilla_node::{Event, Request, Ticket};
use flotilla_storage::log::stated_bytes;
use flotilla_storage::store::SimulatedStore;
use flotilla_types::PlantedFault;
use std::time::Duration;

/// How a fault that lasts is taken back.
#[derive(Debug)]
pub(crate) enum Ending {
    /// These directions are cut now, for this long.
    Cut(Vec<(HostNumber, HostNumber)>, Duration),
    /// These directions are cut no more.
    Mend(Vec<(HostNumber, HostNumber)>),
    /// This node holds its share again.
    Undrain(HostNumber),
    /// Moves for the sake of balance go on.
    Resume,
}

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

impl World {
    /// Does one fault, and plans the next.
    pub(crate) fn fault(&mut self) {
        if self.healed {
            return;
        }
        let kind = *self.chance.faults.pick(&self.scenario.faults).expect("a scenario has faults");
        self.do_fault(kind);
        let mean = self.scenario.fault_interval.as_millis() as u64;
        let after = ms(self.chance.faults.between(mean / 10, mean * 2));
        self.plan(after, Happening::Fault);
    }

    fn do_fault(&mut self, fault: Fault) {
        let rng = &mut self.chance.faults;
        let short = ms(rng.between(20, 300).max(rng.between(1, 40) * rng.between(1, 100)));
        let until = self.now + short;
        let Some(host) = self.choose_host() else { return };
        self.trace
            .note(self.now, "fault", &[fault as u64, host as u64], || format!("{fault:?}, n{} for {} ms", host + 1, short.as_millis()));
        let others = || (0..self.hosts.len()).filter(move |other| *other != host);
        match fault {
            Fault::Crash => {
                let power_lost = self.chance.faults.chance(1, 2);
                self.kill(host, power_lost);
                self.plan(short, Happening::Start(host, self.hosts[host].life));
            }
            Fault::PowerCut => {
                for host in 0..self.hosts.len() {
                    if self.hosts[host].process.is_some() {
                        self.kill(host, true);
                        let after = ms(self.chance.faults.between(10, 1_500));
                        self.plan(after, Happening::Start(host, self.hosts[host].life));
                    }
                }
            }
            Fault::Pause if self.scenario.family == Family::Reads => {
                // Cut off in its sleep, it wakes as a leader that has missed its successor's election,
                // with answers of its followers from before in its inbox.
                let cuts: Vec<_> = others().flat_map(|other| [(host, other), (other, host)]).collect();
                let asleep = ms(self.chance.faults.between(1_300, 4_000));
                self.hosts[host].paused_until = self.now + asleep;
                let after = ms(self.chance.faults.between(5, 100));
                self.plan(after, Happening::End(Ending::Cut(cuts, asleep)));
            }
            Fault::Pause => self.hosts[host].paused_until = until,
            Fault::Partition => {
                let side: Vec<bool> = (0..self.hosts.len()).map(|_| self.chance.faults.chance(1, 2)).collect();
                let across = |(a, b): &(usize, usize)| side[*a] != side[*b];
                let cuts = (0..side.len()).flat_map(|a| (0..side.len()).map(move |b| (a, b))).filter(across).collect();
                self.cut(cuts, short);
            }
            Fault::OneWayCut => {
                let other = others().nth(self.chance.faults.below(self.hosts.len() as u64 - 1) as usize).expect("there are others");
                self.cut(vec![(host, other)], short);
            }
            Fault::Isolation => {
                let cuts = others().flat_map(|other| [(host, other), (other, host)]).collect();
                self.cut(cuts, short);
            }
            Fault::Loss => self.loss = (until, self.chance.faults.between(10, 400)),
            Fault::Delay => self.delay = (until, self.chance.faults.between(5, 400)),
            Fault::Reconnect => {
                let others: Vec<HostNumber> = others().collect();
                for other in others {
                    if self.chance.faults.chance(1, 2) {
                        let (at, peer) = if self.chance.faults.chance(1, 2) { (host, other) } else { (other, host) };
                        self.break_end(at, peer, false);
                    }
                }
            }
            Fault::SlowDisk => self.hosts[host].slow_disk = (until, *self.chance.faults.pick(&[10, 100, 100_000]).expect("not empty")),
            Fault::SlowStore => self.hosts[host].slow_store = (until, *self.chance.faults.pick(&[10, 100, 100_000]).expect("not empty")),
            Fault::Clock => {
                let (drift, offset) =
                    (self.chance.faults.between(0, 100_000) as i64 - 50_000, self.chance.faults.between(0, 7_200_000) as i64 - 3_600_000);
                let now = self.now;
                let clock = &mut self.hosts[host].clock;
                clock.set_drift(drift, now);
                clock.set_wall_offset(offset);
            }
            Fault::Wipe | Fault::BitFlip => return self.lose_disk(fault, host, short),
            Fault::Growth => return,
            Fault::Operator => self.operate(host, short * 10),
        }
        self.coverage.fault(fault, until);
    }

    /// An operator wants something, of this node or of the whole.
    fn operate(&mut self, host: HostNumber, for_time: Duration) {
        let node = self.hosts[host].name.clone();
        match self.chance.faults.below(10) {
            0..4 => {
                self.ask_as_operator(AdminAction::Drain { node });
                self.plan(for_time, Happening::End(Ending::Undrain(host)));
            }
            4..7 => self.ask_as_operator(AdminAction::Remove { node, force: false }),
            7 => self.ask_as_operator(AdminAction::Remove { node, force: true }),
            8 => {
                let shard = self.chance.faults.below(u64::from(self.scenario.shards)) as u32;
                self.ask_as_operator(AdminAction::MoveLeader { shard, to: None });
            }
            _ => {
                self.ask_as_operator(AdminAction::SetRebalancing { paused: Some(true), bytes_per_second: None });
                self.plan(for_time, Happening::End(Ending::Resume));
            }
        }
    }

    /// Asks any member.
    pub(crate) fn ask_as_operator(&mut self, action: AdminAction) {
        let members: Vec<HostNumber> = (0..self.hosts.len()).filter(|host| self.is_member(*host)).collect();
        let Some(host) = self.chance.faults.pick(&members).copied() else { return };
        self.ask_of(host, AdminRequest { action, dry_run: false });
    }

    /// An operator asks this machine's node.
    pub(crate) fn ask_of(&mut self, host: HostNumber, request: AdminRequest) {
        self.trace.note(self.now, "operator", &[host as u64], || format!("asks n{}: {:?}", host + 1, request.action));
        let ticket = self.wait(Waiting::Operator, host);
        let expires = self.hosts[host].clock.now(self.now).instant + ms(3_000);
        self.give(host, Event::Request { ticket: Ticket(ticket), request: Request::Admin(request), expires });
    }

    /// A machine with a process, rather one that leads many groups.
    fn choose_host(&mut self) -> Option<HostNumber> {
        let alive: Vec<HostNumber> = (0..self.hosts.len()).filter(|host| self.hosts[*host].process.is_some()).collect();
        let mut chosen = *self.chance.faults.pick(&alive)?;
        if self.chance.faults.chance(1, 2) {
            let mut most = 0;
            for host in alive {
                let leads = self.hosts[host].running().map_or(0, |running| running.node.stats().leaders);
                if leads > most {
                    (most, chosen) = (leads, host);
                }
            }
        }
        Some(chosen)
    }

    /// A data-dir is lost, or a bit of it flips: only where the copies that stay are a majority.
    fn lose_disk(&mut self, fault: Fault, host: HostNumber, down: Duration) {
        let recently = self.disk_lost.is_some_and(|lost| self.now.since(lost) < ms(5_000));
        let whole = self.hosts.len() >= 3 && (0..self.hosts.len()).all(|h| self.is_member(h));
        if recently || !whole || !verdict::is_placed(self) {
            return;
        }
        self.disk_lost = Some(self.now);
        let keeps_id = fault == Fault::Wipe && self.scenario.plant == Some(PlantedFault::ReseedUnderOldReplicaId);
        self.hosts[host].kept_id = if keeps_id { self.hosts[host].node_id() } else { None };
        self.coverage.fault(fault, self.now + down);
        self.kill(host, self.now.0.is_multiple_of(2));
        if fault == Fault::Wipe {
            self.empty_data_dir(host);
        } else if let Some((file, offset)) = self.hosts[host].disk.flip_bit_within(&mut self.chance.faults, stated_bytes) {
            self.trace.note(self.now, "bit flip", &[host as u64, offset], || format!("n{}: {file} at {offset}", host + 1));
            self.hosts[host].damaged = true;
        }
        self.plan(down, Happening::Start(host, self.hosts[host].life));
    }

    /// The machine gets an empty data-dir: its node is another one from now on.
    pub(crate) fn empty_data_dir(&mut self, number: HostNumber) {
        let host = &mut self.hosts[number];
        let ignore_sync = self.scenario.plant == Some(PlantedFault::AcknowledgeBeforeSync);
        host.disk = flotilla_storage::disk::SimulatedDisk::new();
        host.disk.ignore_sync(ignore_sync);
        host.store = SimulatedStore::new();
        host.replaces = true;
        host.damaged = false;
    }

    /// A process dies; if power is lost, so does what the machine had not yet written to its disks.
    pub(crate) fn kill(&mut self, number: HostNumber, power_lost: bool) {
        let host = &mut self.hosts[number];
        if host.process.take().is_none() {
            return;
        }
        self.trace.note(self.now, "kill", &[number as u64], || format!("n{}", number + 1));
        host.life += 1;
        host.paused_until = Moment(0);
        host.disk.crash(&mut self.chance.machines);
        host.store =
            if power_lost { host.store.crash(&mut self.chance.machines) } else { host.store.crash_keeping(host.store.unpersisted()) };
        self.hang_up(number);
        for other in (0..self.hosts.len()).filter(|other| *other != number) {
            let Some(connection) = self.network.connection(number, other).map(|c| c.number) else { continue };
            self.network.give_up(number, other);
            let seen_at_once = !power_lost && self.network.is_passable(number, other);
            let after = ms(if seen_at_once { self.chance.network.between(0, 40) } else { self.chance.network.between(200, 3_000) });
            let refused = seen_at_once && self.chance.network.chance(1, 2);
            self.plan(after, Happening::LinkDown { at: other, other: number, connection, refused });
        }
    }

    /// Cuts directions for a while. If it lasts too long for an end, that end gives up.
    fn cut(&mut self, cuts: Vec<(HostNumber, HostNumber)>, lasting: Duration) {
        for (from, to) in &cuts {
            self.network.cut(*from, *to);
            if let Some(connection) = self.network.connection(*from, *to).map(|c| c.number) {
                for (at, other) in [(*from, *to), (*to, *from)] {
                    let after = ms(self.chance.network.between(300, 4_000));
                    self.plan(after, Happening::LinkDown { at, other, connection, refused: false });
                }
            }
        }
        self.plan(lasting, Happening::End(Ending::Mend(cuts)));
    }

    pub(crate) fn end_fault(&mut self, ending: Ending) {
        match ending {
            Ending::Cut(cuts, lasting) => self.cut(cuts, lasting),
            Ending::Undrain(host) => self.ask_as_operator(AdminAction::Undrain { node: self.hosts[host].name.clone() }),
            Ending::Resume => self.ask_as_operator(AdminAction::SetRebalancing { paused: Some(false), bytes_per_second: None }),
            Ending::Mend(cuts) => {
                for (from, to) in cuts {
                    let waiting: Vec<Pipe> = self.network.mend(from, to);
                    for pipe in waiting {
                        let after = Self::draw(&mut self.chance.network, self.scenario.link);
                        self.plan(after, Happening::Arrive(pipe));
                    }
                }
            }
        }
    }

    /// No more faults: whatever is broken is mended, whatever is down is started. Cuts and pauses
    /// that are under way end by themselves, soon.
    pub(crate) fn heal(&mut self) {
        self.trace.note(self.now, "heal", &[], String::new);
        self.healed = true;
        self.loss = (Moment(0), 0);
        self.delay = (Moment(0), 0);
        for number in 0..self.hosts.len() {
            let now = self.now;
            let host = &mut self.hosts[number];
            host.clock.set_drift(0, now);
            host.clock.set_wall_offset(0);
            host.slow_disk = (Moment(0), 1);
            host.slow_store = (Moment(0), 1);
            if host.process.is_none() {
                self.plan(ms(10), Happening::Start(number, self.hosts[number].life));
            }
        }
    }
}
