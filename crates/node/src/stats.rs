//! What a node counts of itself, for metrics. The world asks for it; nothing here decides anything.

use crate::node::Node;

/// Plain counters of what the node did, for metrics.
#[derive(Clone, Copy, Debug, Default)]
pub struct NodeStats {
    /// Requests taken from the doors.
    pub requests: u64,
    /// Requests forwarded to a leader elsewhere.
    pub forwarded: u64,
    /// Requests of other nodes answered here.
    pub served_for_peers: u64,
    /// Requests refused because a bound was met.
    pub refused: u64,
    /// Entries proposed.
    pub proposals: u64,
    /// Mutations in them.
    pub mutations: u64,
    /// Leadership rounds begun.
    pub read_rounds: u64,
    /// Reads answered by a round.
    pub reads: u64,
    /// Pages of scans that were asked for at this node's doors.
    pub scans: u64,
    /// Log jobs.
    pub log_jobs: u64,
    /// Raft messages sent.
    pub raft_messages: u64,
    /// Times one of this node's replicas asked for votes.
    pub elections_begun: u64,
    /// Times one of this node's replicas began to lead.
    pub elections_won: u64,
    /// Times a replica of this node took up with a leader, a new one or one that it had lost.
    pub leader_changes: u64,
    /// The highest term of a replica on this node.
    pub term_max: u64,
    /// Replicas on this node that know no leader.
    pub leaderless: u64,
    /// Snapshots sent whole.
    pub snapshots_sent: u64,
    /// Snapshots installed.
    pub snapshots_installed: u64,
    /// Scrubs named.
    pub scrubs_begun: u64,
    /// Scrubs named here that came to an end.
    pub scrubs_ended: u64,
    /// Of these, those in which all replicas took part and agreed.
    pub scrubs_whole: u64,
    /// Times a scrub named here found that replicas differ.
    pub scrub_differing: u64,
    /// Times a scrub found damaged or missing rows in a replica here, by themselves.
    pub scrub_damage: u64,
    /// Bytes read by scrubs.
    pub scrub_bytes: u64,
    /// Views that wait to be read for scrubs, or are being read.
    pub scrub_views: u64,
    /// Requests under way.
    pub requests_under_way: u64,
    /// Bytes that these hold.
    pub request_bytes: u64,
    /// Bytes handed to the apply thread and not yet applied.
    pub unapplied_bytes: u64,
    /// Entries committed and not yet applied, over all replicas.
    pub unapplied_entries: u64,
    /// Of the replica that is furthest behind.
    pub unapplied_entries_max: u64,
    /// Bytes of entries in memory.
    pub entry_bytes: u64,
    /// Bytes of outgoing snapshots in memory.
    pub snapshot_bytes: u64,
    /// Bytes of scans under way in memory.
    pub scan_bytes: u64,
    /// Keys in the replicas of this node.
    pub keys: u64,
    /// Bytes of keys and values in them.
    pub key_bytes: u64,
    /// Replicas on this node.
    pub replicas: u64,
    /// Of these, leaders.
    pub leaders: u64,
}

impl Node {
    /// What the node counted, and what it is at now.
    pub fn stats(&mut self) -> &NodeStats {
        let mut stats = NodeStats {
            request_bytes: self.requests.bytes_under_way() as u64,
            snapshot_bytes: self.transfers.bytes() as u64,
            scan_bytes: self.scans.bytes() as u64,
            scrub_views: self.scrubs.views() as u64,
            replicas: self.replicas.len() as u64,
            leaders: 0,
            leaderless: 0,
            term_max: 0,
            unapplied_entries: 0,
            unapplied_entries_max: 0,
            entry_bytes: 0,
            keys: 0,
            key_bytes: 0,
            ..self.stats
        };
        for replica in self.replicas.values() {
            let lag = replica.group.commit().0.saturating_sub(replica.applied.0);
            stats.leaders += u64::from(replica.is_leader());
            stats.leaderless += u64::from(replica.leaderless_since.is_some());
            stats.term_max = stats.term_max.max(replica.group.term().0);
            stats.unapplied_entries += lag;
            stats.unapplied_entries_max = stats.unapplied_entries_max.max(lag);
            stats.entry_bytes += replica.group.entries_bytes() as u64;
            stats.keys += replica.keys;
            stats.key_bytes += replica.bytes;
        }
        self.stats = stats;
        &self.stats
    }
}
