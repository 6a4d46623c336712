//! The numbers of a node: its requests, Raft, log, store, links, memory and disk.
//!
//! No label grows with time or load: `peer` is bounded by the members, `part` is a fixed list. Nothing is
//! told by shard: of 64 shards on each of many nodes nobody draws a line each, and `/v1/cluster` tells.

use super::{Exposition, MetricKind, MetricValue, Sample, process};
use crate::handle::{DriverStats, NodeHandle};
use crate::peer::LinkStats;
use crate::threads::{LogNumbers, StoreNumbers};
use flotilla_node::NodeStats;

/// Name and help of a counter of one link, and which one it is.
type LinkCount = (&'static str, &'static str, fn(&LinkStats) -> u64);

/// Writes all of them.
pub(crate) fn write_node_metrics(handle: &NodeHandle, exposition: &mut Exposition) {
    let node = handle.with_node(|node| *node.stats());
    let driver = handle.driver_stats();
    exposition.sample(&Sample {
        name: "flotilla_build_info",
        help: "Always 1; the label names the version.",
        kind: MetricKind::Gauge,
        labels: &[("version", env!("CARGO_PKG_VERSION"))],
        value: MetricValue::Count(1),
    });
    write_requests(exposition, &node, &driver, handle.requests_in_flight() as u64);
    write_raft(exposition, &node, handle.0.unapplied_bytes_max);
    write_log(exposition, &node, &handle.0.log);
    write_store(exposition, &node, &handle.0.store);
    write_scrubs(exposition, &node);
    write_links(exposition, handle);
    write_loop(exposition, &driver);
    write_memory(exposition, &node, handle);
    write_disk(exposition, handle);
    process::write(exposition, handle.0.since);
}

fn write_requests(exposition: &mut Exposition, node: &NodeStats, driver: &DriverStats, in_flight: u64) {
    exposition.samples([
        Sample::counter("flotilla_requests_total", "Requests taken from the doors.", node.requests),
        Sample::counter("flotilla_requests_forwarded_total", "Requests forwarded to a leader elsewhere.", node.forwarded),
        Sample::counter("flotilla_requests_for_peers_total", "Requests of other nodes answered here.", node.served_for_peers),
        Sample::counter("flotilla_requests_refused_total", "Requests refused because a bound was met.", node.refused + driver.refused),
        Sample::gauge("flotilla_requests_in_flight", "Requests at the doors that are not answered yet.", in_flight),
        Sample::counter("flotilla_read_rounds_total", "Leadership rounds begun for reads.", node.read_rounds),
        Sample::counter("flotilla_reads_total", "Reads answered by a leadership round.", node.reads),
        Sample::counter("flotilla_reads_inline_total", "Point reads run by the loop itself.", driver.reads_inline),
        Sample::counter(
            "flotilla_reads_handed_over_total",
            "Point reads given to threads because reading was slow.",
            driver.reads_handed_over,
        ),
        Sample::counter("flotilla_scan_pages_total", "Pages of scans asked for at the doors.", node.scans),
    ]);
}

fn write_raft(exposition: &mut Exposition, node: &NodeStats, unapplied_bytes_max: u64) {
    exposition.samples([
        Sample::gauge("flotilla_replicas", "Replicas on this node.", node.replicas),
        Sample::gauge("flotilla_leaders", "Replicas on this node that lead.", node.leaders),
        Sample::gauge("flotilla_leaderless_replicas", "Replicas on this node that know no leader.", node.leaderless),
        Sample::gauge("flotilla_raft_term_max", "The highest term of a replica on this node.", node.term_max),
        Sample::counter(
            "flotilla_raft_leader_changes_total",
            "Times a replica on this node took up with a leader, a new one or one that it had lost.",
            node.leader_changes,
        ),
        Sample::counter("flotilla_elections_begun_total", "Times a replica on this node asked for votes.", node.elections_begun),
        Sample::counter("flotilla_elections_won_total", "Times a replica on this node began to lead.", node.elections_won),
        Sample::counter("flotilla_proposals_total", "Raft entries proposed.", node.proposals),
        Sample::counter("flotilla_mutations_total", "Writes in proposed Raft entries.", node.mutations),
        Sample::counter("flotilla_raft_messages_total", "Raft messages sent.", node.raft_messages),
        Sample::gauge(
            "flotilla_unapplied_entries",
            "Entries that are committed and not applied, over all replicas.",
            node.unapplied_entries,
        ),
        Sample::gauge(
            "flotilla_unapplied_entries_max",
            "Entries that are committed and not applied, of the replica furthest behind.",
            node.unapplied_entries_max,
        ),
        Sample::gauge("flotilla_unapplied_bytes", "Committed bytes that wait to be applied.", node.unapplied_bytes),
        Sample::gauge(
            "flotilla_unapplied_max_bytes",
            "How many committed bytes may wait to be applied; past that writes are refused.",
            unapplied_bytes_max,
        ),
        Sample::counter("flotilla_snapshots_sent_total", "Snapshots sent whole.", node.snapshots_sent),
        Sample::counter("flotilla_snapshots_installed_total", "Snapshots installed.", node.snapshots_installed),
    ]);
}

fn write_log(exposition: &mut Exposition, node: &NodeStats, log: &LogNumbers) {
    exposition.histogram("flotilla_log_sync_duration_seconds", "Time that a sync of the Raft log takes.", &[], &log.sync_time);
    exposition.samples([
        Sample::counter("flotilla_log_jobs_total", "Batches given to the log thread.", node.log_jobs),
        Sample::counter("flotilla_log_batches_total", "Batches written to the Raft log.", log.batches.get()),
        Sample::counter("flotilla_log_bytes_total", "Bytes of batches written to the Raft log.", log.bytes.get()),
        Sample::counter(
            "flotilla_log_moved_bytes_total",
            "Bytes of entries moved out of old segments of the Raft log.",
            log.moved_bytes.get(),
        ),
        Sample::gauge("flotilla_log_segments", "Segments of the Raft log, spare ones aside.", log.segments.get()),
        Sample::gauge("flotilla_log_disk_bytes", "Bytes of the segments of the Raft log, spare ones aside.", log.disk_bytes.get()),
        Sample::gauge(
            "flotilla_log_live_bytes",
            "About how many bytes of the Raft log hold entries that are still needed.",
            log.live_bytes.get(),
        ),
    ]);
}

fn write_store(exposition: &mut Exposition, node: &NodeStats, store: &StoreNumbers) {
    exposition.histogram(
        "flotilla_apply_duration_seconds",
        "Time that one batch of entries takes to apply, its write to the store included.",
        &[],
        &store.apply_time,
    );
    exposition.histogram(
        "flotilla_store_persist_duration_seconds",
        "Time that it takes to make the store's writes durable.",
        &[],
        &store.persist_time,
    );
    exposition.samples([
        Sample::counter("flotilla_applied_entries_total", "Entries applied.", store.entries.get()),
        Sample::counter("flotilla_store_stalls_total", "Jobs of the apply thread that took longer than 100 ms.", store.stalls.get()),
        Sample::gauge("flotilla_store_disk_bytes", "About how many bytes the store takes on disk.", store.disk_bytes.get()),
        Sample::gauge("flotilla_keys", "Keys in the replicas on this node.", node.keys),
        Sample::gauge("flotilla_key_bytes", "Bytes of keys and values in the replicas on this node.", node.key_bytes),
    ]);
}

fn write_scrubs(exposition: &mut Exposition, node: &NodeStats) {
    exposition.samples([
        Sample::counter("flotilla_scrubs_begun_total", "Scrubs named by leaders on this node.", node.scrubs_begun),
        Sample::counter("flotilla_scrubs_ended_total", "Scrubs named by leaders on this node that came to an end.", node.scrubs_ended),
        Sample::counter("flotilla_scrubs_agreed_total", "Of the scrubs that ended, those in which all copies agreed.", node.scrubs_whole),
        Sample::counter(
            "flotilla_scrub_differing_total",
            "Times a scrub named by a leader on this node found copies that differ.",
            node.scrub_differing,
        ),
        Sample::counter(
            "flotilla_scrub_damage_total",
            "Times a scrub found rows of a replica on this node damaged or missing.",
            node.scrub_damage,
        ),
        Sample::counter("flotilla_scrub_read_bytes_total", "Bytes of rows that scrubs have read on this node.", node.scrub_bytes),
        Sample::gauge("flotilla_scrub_views", "Views of replicas on this node that scrubs read or wait to read.", node.scrub_views),
    ]);
}

fn write_links(exposition: &mut Exposition, handle: &NodeHandle) {
    let links = handle.links();
    let views = links.views();
    let names: Vec<String> = handle.with_node(|node| views.iter().map(|view| node.name_of(view.node)).collect());
    let counts: [LinkCount; 10] = [
        ("flotilla_link_connects_total", "Connections made to the peer.", |stats| stats.connects),
        ("flotilla_link_sent_bytes_total", "Bytes written to the peer.", |stats| stats.bytes_sent),
        ("flotilla_link_received_bytes_total", "Bytes read from the peer.", |stats| stats.bytes_received),
        ("flotilla_link_frames_sent_total", "Frames put together for the peer.", |stats| stats.frames_sent),
        ("flotilla_link_frames_received_total", "Frames read from the peer.", |stats| stats.frames_received),
        ("flotilla_link_messages_sent_total", "Messages queued for the peer.", |stats| stats.messages_sent),
        ("flotilla_link_messages_received_total", "Messages read from the peer.", |stats| stats.messages_received),
        ("flotilla_link_messages_dropped_total", "Messages not sent because the link was down or full.", |stats| stats.messages_dropped),
        ("flotilla_link_writes_total", "Write system calls to the peer.", |stats| stats.writes),
        ("flotilla_link_reads_total", "Read system calls from the peer.", |stats| stats.reads),
    ];
    let mut family = |name: &str, help: &str, kind, value: &dyn Fn(usize) -> u64| {
        for (place, peer) in names.iter().enumerate() {
            exposition.sample(&Sample { name, help, kind, labels: &[("peer", peer)], value: MetricValue::Count(value(place)) });
        }
    };
    let up = "Whether the connections to and from the peer are up.";
    family("flotilla_link_up", up, MetricKind::Gauge, &|place| u64::from(views[place].is_up));
    let queue = "Bytes that wait to be sent to the peer.";
    family("flotilla_link_queue_bytes", queue, MetricKind::Gauge, &|place| views[place].pending_bytes as u64);
    for (name, help, count) in counts {
        family(name, help, MetricKind::Counter, &|place| count(&views[place].stats));
    }
    exposition.samples([
        Sample::counter("flotilla_link_handshakes_refused_total", "Connections on the peer port that were refused.", links.refused()),
        Sample::counter("flotilla_link_misdirected_total", "Messages not sent because their receiver is no peer.", links.misdirected()),
    ]);
}

fn write_loop(exposition: &mut Exposition, driver: &DriverStats) {
    exposition.samples([
        Sample::counter("flotilla_loop_turns_total", "Turns of the node's loop.", driver.turns),
        Sample::counter("flotilla_loop_events_total", "Events that the node's loop has handled.", driver.events),
        Sample::measure(
            "flotilla_loop_turn_max_seconds",
            "The longest turn of the node's loop since the start.",
            driver.turn_time_max.as_secs_f64(),
        ),
    ]);
}

fn write_memory(exposition: &mut Exposition, node: &NodeStats, handle: &NodeHandle) {
    let links: usize = handle.links().views().iter().map(|view| view.pending_bytes).sum();
    let parts = [
        ("requests", node.request_bytes),
        ("entries", node.entry_bytes),
        ("apply_queue", node.unapplied_bytes),
        ("snapshots", node.snapshot_bytes),
        ("scans", node.scan_bytes),
        ("link_queues", links as u64),
    ];
    for (part, bytes) in parts {
        exposition.sample(&Sample {
            name: "flotilla_memory_bytes",
            help: "Bytes that a part of the node holds; parts may share them.",
            kind: MetricKind::Gauge,
            labels: &[("part", part)],
            value: MetricValue::Count(bytes),
        });
    }
    let help = "How much memory may hold blocks read from the store.";
    exposition.sample(&Sample::gauge("flotilla_store_cache_max_bytes", help, handle.0.store_cache_bytes_max));
}

fn write_disk(exposition: &mut Exposition, handle: &NodeHandle) {
    // Not looked at yet, or a file system that cannot say: unknown is no number.
    let Some(room) = handle.0.room.get() else { return };
    exposition.samples([
        Sample::gauge("flotilla_disk_free_bytes", "Bytes free on the file system of the data-dir.", room.free),
        Sample::gauge("flotilla_disk_total_bytes", "Bytes of the file system of the data-dir.", room.total),
        Sample::gauge(
            "flotilla_disk_is_low",
            "Whether puts are refused because the file system of the data-dir is almost full.",
            u64::from(room.is_low),
        ),
    ]);
}
