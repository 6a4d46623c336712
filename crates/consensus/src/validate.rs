//! Checks of a message before the library sees it.
//!
//! The library takes a broken invariant for a bug and panics. A peer may be of another version,
//! damaged, or not what it says it is, and must not be able to stop us: whatever could reach one of
//! the library's `fatal!`s or asserts from a message is refused here. Each check names what it
//! prevents. Whether a peer may lead us at all is decided by the link, which knows who it is.

use crate::entry_cache::EntryCache;
use crate::error::StepError;
use crate::membership;
use crate::message::{Message, MessageKind};
use flotilla_types::wire::Reader;
use flotilla_types::{LogIndex, Membership, MembershipChange, ReplicaId};
use raft::eraftpb::{self, EntryType};
use raft::{Raft, StateRole};

/// No term or index comes near this, so that sums of them cannot overflow.
const NUMBER_MAX: u64 = 1 << 62;

/// Says why `message` must not reach `raft`.
pub(crate) fn check(raft: &Raft<EntryCache>, message: &Message) -> Result<(), StepError> {
    let m = &message.0;
    if m.to != raft.id {
        return Err(StepError::OtherReplica(ReplicaId(m.to)));
    }
    // Term 0 and sender 0 mean "from this replica itself" to the library.
    require(m.from != 0 && m.from != raft.id, "it comes from nobody or from this replica")?;
    require(m.term != 0, "its term is 0")?;
    let numbers = [m.term, m.index, m.log_term, m.commit, m.commit_term, m.reject_hint, m.request_snapshot];
    require(numbers.into_iter().all(|n| n < NUMBER_MAX), "a number in it is out of bounds")?;
    match message.kind() {
        MessageKind::Append => check_append(m),
        MessageKind::AppendAnswer => check_append_answer(raft, m),
        MessageKind::PreVote | MessageKind::Vote => {
            // A rejection by a replica in term 0 would be fatal; nobody is rejected by one for less.
            require(m.priority >= 0, "its priority is negative")
        }
        MessageKind::Heartbeat => check_heartbeat(raft, m),
        MessageKind::Snapshot => check_snapshot(raft, m),
        MessageKind::PreVoteAnswer | MessageKind::VoteAnswer | MessageKind::HeartbeatAnswer | MessageKind::CampaignNow => Ok(()),
    }
}

fn require(holds: bool, reason: &'static str) -> Result<(), StepError> {
    if holds { Ok(()) } else { Err(StepError::Invalid(reason)) }
}

/// Whether the library would act on a message from a leader, rather than drop it as outdated.
fn would_follow(raft: &Raft<EntryCache>, m: &eraftpb::Message) -> bool {
    m.term > raft.term || (m.term == raft.term && raft.state != StateRole::Leader)
}

fn check_append(m: &eraftpb::Message) -> Result<(), StepError> {
    // Term 0 would "match" any position past our log's end, and entries be put beyond a gap.
    require((m.log_term == 0) == (m.index == 0), "only the position before all entries has term 0")?;
    let mut term = m.log_term;
    for (position, entry) in m.entries.iter().enumerate() {
        require(entry.index == m.index + 1 + position as u64, "its entries are not one run")?;
        require(entry.term >= term.max(1) && entry.term <= m.term, "the terms of its entries go back or ahead")?;
        term = entry.term;
        if entry.entry_type != EntryType::EntryNormal {
            // Once committed nobody could apply it.
            require(MembershipChange::decode(entry.context.clone()).is_ok(), "a membership entry cannot be read")?;
        }
    }
    require(m.log_term <= m.term, "its term is behind its entries")
}

fn check_append_answer(raft: &Raft<EntryCache>, m: &eraftpb::Message) -> Result<(), StepError> {
    // The library would take the follower's log to be longer than the leader's own.
    let is_answer_to_us = raft.state == StateRole::Leader && m.term == raft.term;
    let last = raft.raft_log.last_index();
    require(!is_answer_to_us || m.index <= last, "it acknowledges what was never sent")?;
    require(!is_answer_to_us || m.request_snapshot <= last, "it requests a snapshot of what does not exist")
}

fn check_heartbeat(raft: &Raft<EntryCache>, m: &eraftpb::Message) -> Result<(), StepError> {
    let last = raft.raft_log.last_index();
    if would_follow(raft, m) && m.commit > last {
        return Err(StepError::CommitPastEnd { claimed: LogIndex(m.commit), last: LogIndex(last) });
    }
    Ok(())
}

fn check_snapshot(raft: &Raft<EntryCache>, m: &eraftpb::Message) -> Result<(), StepError> {
    let snapshot = m.get_snapshot();
    let (index, term) = (snapshot.get_metadata().index, snapshot.get_metadata().term);
    require(index > 0 && index < NUMBER_MAX && term > 0 && term <= m.term, "its snapshot's position is out of bounds")?;
    let membership = Membership::decode(&mut Reader::new(snapshot.data.clone()));
    let sound = membership.is_ok_and(|membership| membership::contradiction(&membership).is_none());
    require(sound, "its snapshot's membership contradicts itself")?;
    // The library would wipe the log and install another history under our applied state.
    if would_follow(raft, m) && index == raft.raft_log.committed && raft.raft_log.term(index).is_ok_and(|ours| ours != term) {
        return Err(StepError::Diverged(LogIndex(index)));
    }
    Ok(())
}
