//! Runs the golden scripts of `testscripts/`. `UPDATE_GOLDENFILES=1` rewrites their outputs.

mod cluster;

use bytes::Bytes;
use cluster::{Cluster, Disk, member};
use flotilla_consensus::{ReadConfirm, ReadRounds, ReadToConfirm, ResolvedRead};
use flotilla_types::{GroupId, Instant, LogIndex, MemberStep, MembershipChange, NodeId, ReplicaId};
use goldenscript::{Command, Context};
use std::error::Error;

/// The language of the scripts.
struct Runner {
    cluster: Cluster,
    rounds: ReadRounds,
    questions: Vec<(NodeId, ReadConfirm)>,
}

fn run(area: &str) {
    let folder = format!("{}/testscripts/{area}", env!("CARGO_MANIFEST_DIR"));
    let mut scripts: Vec<_> = std::fs::read_dir(folder).expect("the area's folder").map(|e| e.expect("a script").path()).collect();
    scripts.sort();
    for script in scripts {
        let mut runner = Runner { cluster: Cluster::default(), rounds: ReadRounds::new(NodeId(101)), questions: Vec::new() };
        goldenscript::run(&mut runner, &script).unwrap_or_else(|error| panic!("{}: {error}", script.display()));
    }
}

#[test]
fn election() {
    run("election");
}

#[test]
fn replication() {
    run("replication");
}

#[test]
fn membership() {
    run("membership");
}

#[test]
fn read() {
    run("read");
}

#[test]
fn snapshot() {
    run("snapshot");
}

impl Runner {
    fn command(&mut self, command: &Command) -> Result<String, Box<dyn Error>> {
        let mut args = command.consume_args();
        let mut next = || args.next_pos().map(str::to_owned).ok_or("an argument is missing");
        let id = |text: String| text.trim_start_matches('n').parse::<u64>();
        match command.name.as_str() {
            // cluster n1 n2 n3 [learner=n4]: all born with the same membership
            "cluster" => {
                let (mut voters, mut learners) = (Vec::new(), Vec::new());
                while let Some(voter) = args.next_pos() {
                    voters.push(id(voter.to_owned())?);
                }
                while let Some((_, learner)) = args.next_key() {
                    learners.push(id(learner.to_owned())?);
                }
                self.cluster = Cluster::new(&voters, &learners);
            }
            // new n4: a replica that knows nothing
            "new" => self.cluster.add(id(next()?)?, Disk::default()),
            "campaign" => self.cluster.group(id(next()?)?).campaign(),
            "forget-leader" => self.cluster.group(id(next()?)?).forget_leader(),
            // tick n1 60
            "tick" => {
                let (id, count) = (id(next()?)?, next()?.parse::<usize>()?);
                (0..count).for_each(|_| self.cluster.group(id).tick());
            }
            // all replicas tick, and settle after each tick
            "pass" => {
                for _ in 0..next()?.parse::<usize>()? {
                    self.cluster.replicas.values_mut().for_each(|replica| replica.group.tick());
                    self.cluster.settle();
                }
            }
            // propose n1 value
            "propose" => {
                let (id, value) = (id(next()?)?, next()?);
                let (term, index) = self.cluster.group(id).propose(Bytes::from(value))?;
                return Ok(format!("{index} {term}\n"));
            }
            // change n1 voter=n4 learner=n5 remove=n2; nothing: leave the joint membership
            "change" => {
                let leader = id(next()?)?;
                let mut change = MembershipChange::default();
                while let Some((what, of)) = args.next_key() {
                    let of = id(of.to_owned())?;
                    change.steps.push(match what {
                        "voter" => MemberStep::AddVoter(member(of)),
                        "learner" => MemberStep::AddLearner(member(of)),
                        _ => MemberStep::Remove(ReplicaId(of)),
                    });
                }
                let (term, index) = self.cluster.group(leader).propose_membership(&change)?;
                return Ok(format!("{index} {term}\n"));
            }
            "should-leave-joint" => return Ok(format!("{}\n", self.cluster.group(id(next()?)?).should_leave_joint())),
            "transfer" => {
                let (from, to) = (id(next()?)?, id(next()?)?);
                self.cluster.group(from).transfer_leadership(ReplicaId(to));
            }
            "transferring" => return Ok(format!("{}\n", self.cluster.group(id(next()?)?).is_transferring())),
            // stall n1: its disk takes what it is given and does not finish
            "stall" => self.cluster.replica(id(next()?)?).stalled = true,
            "persist" => {
                let id = id(next()?)?;
                self.cluster.replica(id).stalled = false;
                self.cluster.persist(id);
            }
            "cut" => drop(self.cluster.cut.insert(id(next()?)?)),
            "heal" => self.cluster.cut.clear(),
            "restart" => self.cluster.restart(id(next()?)?),
            "purge" => {
                let (id, index) = (id(next()?)?, LogIndex(next()?.parse()?));
                self.cluster.group(id).purge(index);
            }
            "work" => self.cluster.work(),
            "deliver" => self.cluster.deliver(),
            "settle" => self.cluster.settle(),
            "status" => return Ok(self.cluster.status()),
            "serves-reads" => return Ok(format!("{}\n", self.cluster.group(id(next()?)?).serves_reads())),
            // read n1: n1 (on node 101) begins a round for its group
            "read" => return self.read(id(next()?)?),
            // answer n2: the node of n2 answers the last question it was asked
            "answer" => return self.answer(id(next()?)?),
            "drop-group" => {
                let mut resolved = Vec::new();
                self.rounds.drop_group(GroupId(1), &mut resolved);
                return Ok(show_resolved(&resolved));
            }
            name => return Err(format!("no command {name}").into()),
        }
        args.reject_next()?;
        Ok(std::mem::take(&mut self.cluster.trace))
    }

    fn read(&mut self, leader: u64) -> Result<String, Box<dyn Error>> {
        let group = self.cluster.group(leader);
        let read = ReadToConfirm { group: GroupId(1), term: group.term(), read_index: group.commit(), membership: group.membership() };
        let mut resolved = Vec::new();
        let round = self.rounds.begin(Instant::ZERO, [read], &mut resolved);
        self.questions = self.rounds.questions(round);
        let asked: Vec<_> = self.questions.iter().map(|(node, _)| format!("n{}", node_replica(*node))).collect();
        Ok(format!("round {round} asks ({})\n{}", asked.join(" "), show_resolved(&resolved)))
    }

    fn answer(&mut self, of: u64) -> Result<String, Box<dyn Error>> {
        let node = NodeId(of + 100);
        let (_, question) = self.questions.iter().find(|(asked, _)| *asked == node).ok_or("it was not asked")?;
        let term = self.cluster.replicas[&of].group.term();
        let answer = question.answer(|_, asked| asked == term);
        let mut resolved = Vec::new();
        self.rounds.confirm(node, &answer, &mut resolved);
        let shares = if answer.confirmed[..] == [1] { "shares the term" } else { "does not share the term" };
        Ok(format!("n{of} {shares}\n{}", show_resolved(&resolved)))
    }
}

fn node_replica(node: NodeId) -> u64 {
    node.0 - 100
}

fn show_resolved(resolved: &[ResolvedRead]) -> String {
    let show = |read: &ResolvedRead| match read.read_index {
        Some(index) => format!("round {} confirmed: read at {index}\n", read.round),
        None => format!("round {} not confirmed\n", read.round),
    };
    resolved.iter().map(show).collect()
}

impl goldenscript::Runner for Runner {
    type Command = Command;

    fn run(&mut self, command: &Command, _: &Context) -> Result<String, Box<dyn Error>> {
        self.command(command)
    }
}
