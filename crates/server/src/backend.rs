//! The node's handle as what the HTTP door needs, and the node's own numbers for `/metrics`.

use crate::handle::NodeHandle;
use crate::http::Backend;
use crate::metrics::{Exposition, MetricKind, MetricValue, Sample};
use flotilla_node::Location;
use flotilla_node::request::{Failure, Reply, Request};
use flotilla_types::Key;
use std::time::Duration;

impl Backend for NodeHandle {
    async fn request(&self, request: Request, timeout: Duration) -> Reply {
        NodeHandle::request(self, request, timeout).await
    }

    fn refusal_of_put(&self, key: &Key) -> Option<Failure> {
        self.with_node(|node| node.refusal_of_put(key))
    }

    fn locate(&self, key: &Key) -> Location {
        self.with_node(|node| node.locate(key))
    }

    fn ready(&self) -> Result<(), String> {
        if self.with_node(|node| node.is_ready()) {
            return Ok(());
        }
        Err("this node does not know the leaders of all shards: it has just started, is shutting down, or a quorum is missing".to_owned())
    }

    fn write_metrics(&self, exposition: &mut Exposition) {
        let node = self.with_node(|node| *node.stats());
        let (driver, links) = (self.driver_stats(), self.links().stats());
        let count = |name, help, value| Sample { name, help, kind: MetricKind::Counter, labels: &[], value: MetricValue::Count(value) };
        let gauge = |name, help, value| Sample { name, help, kind: MetricKind::Gauge, labels: &[], value: MetricValue::Count(value) };
        exposition.samples([
            count("flotilla_requests_total", "Requests taken from the doors.", node.requests),
            count("flotilla_requests_forwarded_total", "Requests forwarded to a leader elsewhere.", node.forwarded),
            count("flotilla_requests_for_peers_total", "Requests of other nodes answered here.", node.served_for_peers),
            count("flotilla_requests_refused_total", "Requests refused because a bound was met.", node.refused + driver.refused),
            gauge("flotilla_requests_in_flight", "Requests at the doors that are not answered yet.", self.requests_in_flight() as u64),
            count("flotilla_proposals_total", "Raft entries proposed.", node.proposals),
            count("flotilla_mutations_total", "Writes in proposed Raft entries.", node.mutations),
            count("flotilla_read_rounds_total", "Leadership rounds begun for reads.", node.read_rounds),
            count("flotilla_reads_total", "Reads answered by a leadership round.", node.reads),
            count("flotilla_scan_pages_total", "Pages of scans asked for at the doors.", node.scans),
            count("flotilla_log_jobs_total", "Batches given to the log thread.", node.log_jobs),
            count("flotilla_raft_messages_total", "Raft messages sent.", node.raft_messages),
            count("flotilla_elections_won_total", "Times a replica of this node began to lead.", node.elections_won),
            count("flotilla_snapshots_sent_total", "Snapshots sent whole.", node.snapshots_sent),
            count("flotilla_snapshots_installed_total", "Snapshots installed.", node.snapshots_installed),
            gauge("flotilla_unapplied_bytes", "Committed bytes that wait to be applied.", node.unapplied_bytes),
            gauge("flotilla_replicas", "Replicas on this node.", node.replicas),
            gauge("flotilla_leaders", "Replicas on this node that lead.", node.leaders),
            count("flotilla_loop_turns_total", "Turns of the node's loop.", driver.turns),
            count("flotilla_loop_events_total", "Events the node's loop has handled.", driver.events),
            count("flotilla_reads_inline_total", "Point reads run by the loop itself.", driver.reads_inline),
            count("flotilla_reads_handed_over_total", "Point reads given to threads because reading was slow.", driver.reads_handed_over),
            Sample {
                name: "flotilla_loop_turn_seconds_max",
                help: "The longest turn of the node's loop since the start.",
                kind: MetricKind::Gauge,
                labels: &[],
                value: MetricValue::Real(driver.turn_time_max.as_secs_f64()),
            },
            count("flotilla_link_bytes_sent_total", "Bytes written to other nodes.", links.bytes_sent),
            count("flotilla_link_bytes_received_total", "Bytes read from other nodes.", links.bytes_received),
            count("flotilla_link_messages_sent_total", "Messages queued for other nodes.", links.messages_sent),
            count("flotilla_link_messages_received_total", "Messages read from other nodes.", links.messages_received),
            count("flotilla_link_messages_dropped_total", "Messages not sent because a link was down or full.", links.messages_dropped),
            count("flotilla_link_writes_total", "Write system calls to other nodes.", links.writes),
            count("flotilla_link_reads_total", "Read system calls from other nodes.", links.reads),
            count("flotilla_link_handshakes_refused_total", "Connections on the peer port that were refused.", links.refused),
        ]);
    }
}
