//! What one process may tune about its Raft groups.

use crate::ConsensusError;
use flotilla_types::ReplicaId;

/// How one replica takes part in its group. Times are counted in ticks; the defaults suit ticks of
/// 20 ms. Every limit is finite: the library's own defaults are not.
#[derive(Clone, Debug)]
pub struct GroupConfig {
    /// This replica.
    pub replica: ReplicaId,
    /// Shortest election timeout; also how long a leader keeps its role without hearing a quorum.
    pub election_ticks_min: usize,
    /// Longest election timeout, included.
    pub election_ticks_max: usize,
    /// Time between a leader's heartbeats; a third of the shortest election timeout lets two get lost.
    pub heartbeat_ticks: usize,
    /// Bytes proposed and not yet committed above which a leader refuses more; one entry is always taken.
    pub uncommitted_bytes_max: u64,
    /// Bytes of committed entries in one `Ready`; one entry is always given.
    pub committed_bytes_per_ready_max: u64,
    /// Bytes of entries in one message; one entry is always sent.
    pub message_bytes_max: u64,
    /// Messages with entries under way to one follower.
    pub inflight_messages_max: usize,
    /// Whether followers are told of a commit at once, by a message of its own, or (false) by the
    /// next append or heartbeat. Changes of membership are always told at once.
    pub commit_broadcast: bool,
}

impl Default for GroupConfig {
    fn default() -> GroupConfig {
        GroupConfig {
            replica: ReplicaId(0),
            election_ticks_min: 30,
            election_ticks_max: 60,
            heartbeat_ticks: 10,
            uncommitted_bytes_max: 32 << 20,
            committed_bytes_per_ready_max: 4 << 20,
            message_bytes_max: 256 << 10,
            inflight_messages_max: 256,
            commit_broadcast: false,
        }
    }
}

impl GroupConfig {
    /// The library's configuration.
    pub(crate) fn to_raft(&self, applied: u64) -> Result<raft::Config, ConsensusError> {
        if self.election_ticks_min > self.election_ticks_max {
            return Err(ConsensusError::Config("the shortest election timeout is longer than the longest".to_owned()));
        }
        let config = raft::Config {
            id: self.replica.0,
            election_tick: self.election_ticks_min,
            heartbeat_tick: self.heartbeat_ticks,
            applied,
            max_size_per_msg: self.message_bytes_max,
            max_inflight_msgs: self.inflight_messages_max,
            check_quorum: true,
            pre_vote: true,
            min_election_tick: self.election_ticks_min,
            max_election_tick: self.election_ticks_max + 1,
            // Never LeaseBased: the library has no clock, so a lease serves stale reads.
            read_only_option: raft::ReadOnlyOption::Safe,
            skip_bcast_commit: !self.commit_broadcast,
            // The library would put entries behind an empty append of another position (its check for
            // continuity takes any two for continuous if one is empty); our encoding numbers entries by
            // the message's position, so they would arrive as other entries.
            batch_append: false,
            priority: 0,
            max_uncommitted_size: self.uncommitted_bytes_max,
            max_committed_size_per_ready: self.committed_bytes_per_ready_max,
        };
        config.validate().map_err(|error| ConsensusError::Config(error.to_string()))?;
        Ok(config)
    }
}
