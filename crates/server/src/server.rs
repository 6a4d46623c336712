//! Starting a node, running it and ending it. Start-up reads top to bottom as the list of its parts.

use crate::answer_bytes::AnswerBytes;
use crate::clock::Clock;
use crate::config::{Limits, ServerConfig};
use crate::data_dir::{self, DataDir, DataDirError};
use crate::disk_room::DiskRoom;
use crate::driver::Driver;
use crate::error::chain;
use crate::file_limit;
use crate::handle::{DoorLimits, DriverStats, NodeHandle, Shared};
use crate::http::{self, HttpOptions};
use crate::join::{self, JoinError, Look};
use crate::mailbox::{Inbox, Mailbox};
use crate::peer::{self, LinkOptions, Links};
use crate::threads::{LogThread, Readers, StoreThread};
use flotilla_node::boot::{self, Identity};
use flotilla_node::check::others_suffice;
use flotilla_node::control::{Formats, NodeProfile};
use flotilla_node::event::Event;
use flotilla_node::request::{JoinRequest, Reply, Request};
use flotilla_node::state_machine::{ApplyError, ReplicaState};
use flotilla_node::store_worker::StoreWorker;
use flotilla_node::{Node, NodeConfig, StartError};
use flotilla_storage::disk::{DiskError, FileDisk};
use flotilla_storage::log::{LogBatch, LogError, LogOptions, RaftLog, Recovered};
use flotilla_storage::store::engine_files::Depth;
use flotilla_storage::store::{EngineOptions, EngineStore, StoreError};
use flotilla_types::{ClusterId, NodeId, ReplicaKey};
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tokio::net::TcpListener;
use tokio::sync::{Notify, oneshot};
use tokio::time::Instant;

/// How long an ending node may take to hand its leaders over and answer what is under way.
const DRAIN_TIME_MAX: Duration = Duration::from_secs(5);
/// How much of that it waits for changes of members to finish, before it hands over.
const CHANGE_TIME_MAX: Duration = Duration::from_secs(2);
/// How long it goes on after it has handed over.
const LAST_WORDS_TIME: Duration = Duration::from_millis(100);
/// How often it looks whether it has.
const DRAIN_POLL_INTERVAL: Duration = Duration::from_millis(10);
/// Between two attempts to tell the cluster a changed address.
const INTRODUCE_INTERVAL: Duration = Duration::from_secs(1);

/// A node that has started.
#[derive(Clone, Debug)]
pub struct Started {
    /// Its name.
    pub name: String,
    /// Its id.
    pub node: NodeId,
    /// Its cluster.
    pub cluster: ClusterId,
    /// Where it serves HTTP.
    pub http: SocketAddr,
    /// Where other nodes reach it.
    pub peer: SocketAddr,
    /// How it came to be a member.
    pub birth: Birth,
}

/// How a node came to be a member of its cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Birth {
    /// It has just created the cluster.
    Created,
    /// It has just joined.
    Joined,
    /// It was one before.
    Restarted,
}

/// Why a node could not start, or had to end. One line each.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// A port cannot be had.
    #[error("cannot listen on {setting} {address}: {reason}")]
    Bind {
        /// The flag.
        setting: &'static str,
        /// The address.
        address: SocketAddr,
        /// What is in the way.
        reason: String,
    },
    /// The data-dir cannot be used.
    #[error(transparent)]
    DataDir(#[from] DataDirError),
    /// The disk under the log cannot be used.
    #[error("{}", chain(.0))]
    Disk(DiskError),
    /// The Raft log cannot be opened or written.
    #[error("the raft log cannot be used: {}", chain(.0))]
    Log(LogError),
    /// The state store cannot be opened.
    #[error("the state store cannot be used: {0}")]
    Store(String),
    /// The data-dir belongs to another node or cluster than it is to.
    #[error("{0}")]
    Mismatch(String),
    /// No cluster took the node in.
    #[error(transparent)]
    Join(#[from] JoinError),
    /// Log and store do not make a node.
    #[error("data-dir {path} cannot be started from: {reason}")]
    Start {
        /// The data-dir.
        path: String,
        /// Why.
        reason: StartError,
    },
    /// The operating system refused something.
    #[error("cannot {attempted}: {source}")]
    System {
        /// What.
        attempted: &'static str,
        /// What it said.
        source: io::Error,
    },
    /// The running node had to end.
    #[error("{0}")]
    Fatal(String),
}

/// A data-dir whose node has a cluster.
struct Member {
    log: RaftLog<FileDisk>,
    recovered: Recovered,
    identity: Identity,
    birth: Birth,
}

/// Runs a node until `shutdown` resolves and it has ended in order. `on_started` is called once it serves.
///
/// It must run on a thread where tasks can be spawned locally ([`serve_blocking`] sees to that).
///
/// # Errors
/// If it cannot start, or had to end: one line that names the thing and the next step.
pub async fn run(config: ServerConfig, on_started: impl FnOnce(&Started), shutdown: impl Future<Output = ()>) -> Result<(), ServerError> {
    let (http_listener, http_address) = listen("--http-addr", config.http_addr)?;
    let (peer_listener, peer_address) = listen("--peer-addr", config.peer_addr)?;
    let profile = |name: &str| NodeProfile {
        name: name.to_owned(),
        http: Some(config.advertise_http.clone().unwrap_or_else(|| http_address.to_string())),
        peer: config.advertise_peer.clone().unwrap_or_else(|| peer_address.to_string()),
        resp: None,
        zone: config.zone.clone(),
        weight: config.weight,
        formats: Formats { min: boot::FORMAT, max: boot::FORMAT },
    };
    let mut rng = data_dir::random().map_err(|source| ServerError::System { attempted: "read /dev/urandom", source })?;
    let clock = Clock::default();

    let data_dir = DataDir::open(&config.data_dir)?;
    let mut member = become_member(&config, &data_dir, profile, &peer_listener, &mut rng).await?;
    let (worker, states) = match open_store(&config.limits, &data_dir) {
        Err(StoreError::Damaged(damage)) => {
            give_up_store(&config, &data_dir, &mut member, profile, &damage).await?;
            open_store(&config.limits, &data_dir)
        }
        opened => opened,
    }
    .map_err(|error| ServerError::Store(chain(&error)))?;
    let store = worker.store().clone();

    let Member { log, recovered, identity, birth } = member;
    let cluster = identity.cluster.expect("a member has a cluster");
    let started = Started { name: identity.name.clone(), node: identity.node, cluster, http: http_address, peer: peer_address, birth };
    let profile = profile(&identity.name);
    let node = Node::start(node_config(&config), identity, recovered, states, rng.fork(), clock.now())
        .map_err(|reason| ServerError::Start { path: data_dir.path().display().to_string(), reason })?;

    // From here on the log, not the old store, says what is to be done.
    if let Err(error) = data_dir.remove_store_aside() {
        tracing::warn!("cannot remove the store that was given up: {error}");
    }

    let wake = Arc::new(Notify::new());
    let inbox = Rc::new(Inbox::new(Arc::clone(&wake)));
    let mailbox = Arc::new(Mailbox::new(wake));
    let link_options = LinkOptions {
        buffer_bytes_max: config.limits.link_bytes_max,
        advertised: Some(profile.peer.clone()),
        ..LinkOptions::new(started.node, cluster)
    };
    let links = Links::new(link_options, Rc::clone(&inbox), rng.fork());
    let answers = AnswerBytes::new(usize_of(config.limits.request_bytes_max.0));
    let readers = Readers::start(store, &mailbox, answers.clone());
    let log = LogThread::start(log, clock, Arc::clone(&mailbox));
    let store = StoreThread::start(worker, data_dir.suspect(), clock, Arc::clone(&mailbox));
    let handle = NodeHandle(Rc::new(Shared {
        node: RefCell::new(node),
        inbox,
        mailbox,
        tickets: RefCell::default(),
        clock,
        limits: DoorLimits { requests_max: config.limits.requests_max, request_bytes_max: usize_of(config.limits.request_bytes_max.0) },
        links: links.clone(),
        stats: Cell::new(DriverStats::default()),
        log: log.numbers(),
        store: store.numbers(),
        room: Cell::new(None),
        since: SystemTime::now(),
        store_cache_bytes_max: config.limits.store_cache_bytes.0,
        unapplied_bytes_max: config.limits.unapplied_bytes_max.0,
    }));
    let mut driver = Driver::new(&handle, log, store, readers, DiskRoom::of(data_dir.path()), answers);

    let listening = tokio::task::spawn_local(peer::listen(links.clone(), peer_listener));
    let (close_door, door_closes) = oneshot::channel::<()>();
    let door = http::serve(http_listener, Rc::new(handle.clone()), http_options(&config.limits), async {
        let _ = door_closes.await;
    });
    let door = tokio::task::spawn_local(door);
    let door_abort = door.abort_handle();
    let introducing = tokio::task::spawn_local(introduce(handle.clone(), profile, config.join.clone()));
    tracing::info!(node = %started.name, id = %started.node, cluster = %started.cluster, http = %http_address, peer = %peer_address, "serving");
    on_started(&started);

    let ended = {
        let mut turning = pin!(driver.run());
        tokio::select! {
            reason = &mut turning => Err(ServerError::Fatal(reason)),
            () = shutdown => {
                tracing::info!("ending: handing leaders over and answering what is under way");
                let _ = close_door.send(());
                tokio::select! {
                    reason = &mut turning => Err(ServerError::Fatal(reason)),
                    () = drain(&handle, door) => Ok(()),
                }
            }
        }
    };
    introducing.abort();
    listening.abort();
    door_abort.abort();
    links.close();
    if ended.is_ok() {
        // Everything that was acknowledged is in the log; this spares the next start some work.
        driver.finish();
    }
    ended
}

/// Runs a node on this thread, with a runtime of its own, until a signal ends it.
///
/// # Errors
/// As [`run`].
pub fn serve_blocking(config: ServerConfig, on_started: impl FnOnce(&Started)) -> Result<(), ServerError> {
    crate::shutdown::end_on_panic();
    file_limit::raise();
    let failed = |attempted| move |source| ServerError::System { attempted, source };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build_local(tokio::runtime::LocalOptions::default())
        .map_err(failed("start the runtime"))?;
    let ended = runtime.block_on(async {
        let asked = crate::shutdown::asked().map_err(failed("catch signals"))?;
        run(config, on_started, asked).await
    });
    // A name lookup that hangs must not keep the process.
    runtime.shutdown_background();
    ended
}

fn listen(setting: &'static str, address: SocketAddr) -> Result<(TcpListener, SocketAddr), ServerError> {
    let refuse = |error: io::Error| {
        let reason = match error.kind() {
            io::ErrorKind::AddrInUse => "it is in use by another process; end that one or give another port".to_owned(),
            io::ErrorKind::AddrNotAvailable => "it is not an address of this machine".to_owned(),
            io::ErrorKind::PermissionDenied => "permission denied; ports below 1024 need privileges".to_owned(),
            _ => error.to_string(),
        };
        ServerError::Bind { setting, address, reason }
    };
    let listener = peer::bind(address).map_err(refuse)?;
    let bound = listener.local_addr().map_err(refuse)?;
    Ok((listener, bound))
}

/// Opens the log; makes identity and membership if they are not there, each with one synced write.
async fn become_member(
    config: &ServerConfig,
    data_dir: &DataDir,
    profile: impl Fn(&str) -> NodeProfile,
    peer_listener: &TcpListener,
    rng: &mut flotilla_types::Rng,
) -> Result<Member, ServerError> {
    let (mut log, recovered) = open_log(&config.limits, data_dir)?;
    let path = data_dir.path().display();
    let (identity, is_new) = match &recovered.identity {
        Some(bytes) => {
            let identity = Identity::decode(bytes.clone())
                .map_err(|error| ServerError::Mismatch(format!("data-dir {path}: the node's identity cannot be read: {error}")))?;
            (identity, false)
        }
        // The log is synced before the store is made: without one, a store is what remains of a loss.
        None if data_dir.store().exists() => {
            return Err(ServerError::Mismatch(format!(
                "data-dir {path} has a state store but no raft log: its log folder was removed or emptied; put it back, or start an empty data-dir with --join and --replace"
            )));
        }
        None => {
            let node = NodeId(rng.next_u64());
            let name = config.name.clone().unwrap_or_else(|| format!("node-{:06x}", node.0 & 0xff_ffff));
            (Identity::new(node, name), true)
        }
    };
    if let Some(name) = config.name.as_ref().filter(|name| **name != identity.name) {
        let kept = &identity.name;
        return Err(ServerError::Mismatch(format!(
            "data-dir {path} is that of node {kept}, not of {name}: start it with --name {kept} or without --name, or give another data-dir"
        )));
    }
    if let Some(cluster) = identity.cluster {
        let seen = join::look(&config.join, identity.node).await;
        if let Some(Look { target, cluster: other, .. }) = seen.as_ref().filter(|seen| seen.cluster != cluster) {
            return Err(ServerError::Mismatch(format!(
                "data-dir {path} belongs to cluster {cluster}, but {target} of --join to cluster {other}: correct --join, or give an empty data-dir to join that one"
            )));
        }
        // As it was when this node last ran, and as it is now.
        let last = identity.last_control().ok().flatten().and_then(|state| Some(state.nodes.get(&identity.node)?.profile.peer.clone()));
        let own = profile(&identity.name).peer;
        for address in last.into_iter().chain(seen.and_then(|seen| seen.own_peer)).filter(|address| *address != own) {
            if peer::runs_at(&address, cluster, identity.node).await {
                return Err(ServerError::Mismatch(format!(
                    "data-dir {path} is a copy: its node runs at {address}, and two nodes of one id would lose data; give an empty data-dir to join as another node"
                )));
            }
        }
        return Ok(Member { log, recovered, identity, birth: Birth::Restarted });
    }
    if is_new {
        write(&mut log, &boot::new_identity(&identity))?;
    }
    let profile = profile(&identity.name);
    let (batch, birth) = if config.join.is_empty() {
        let cluster = ClusterId(u128::from(rng.next_u64()) << 64 | u128::from(rng.next_u64()));
        let (_, batch) = boot::genesis(identity, cluster, profile, config.shards, config.replicas);
        (batch, Birth::Created)
    } else {
        let request = join_request(identity.node, profile, config.replace);
        let state = tokio::select! {
            joined = join::join(&config.join, &request, join::JOIN_TIME_MAX) => joined?,
            () = peer::answer_while_joining(peer_listener, identity.node) => unreachable!("it answers for as long as it is let"),
        };
        let (_, batch) = boot::joined(identity, &state);
        (batch, Birth::Joined)
    };
    write(&mut log, &batch)?;
    // What was just written is taken up as after any restart.
    drop(log);
    let (log, recovered) = open_log(&config.limits, data_dir)?;
    let identity = recovered.identity.clone().and_then(|bytes| Identity::decode(bytes).ok());
    let identity = identity.filter(|identity| identity.cluster.is_some()).expect("what was written and synced is found again");
    Ok(Member { log, recovered, identity, birth })
}

fn open_log(limits: &Limits, data_dir: &DataDir) -> Result<(RaftLog<FileDisk>, Recovered), ServerError> {
    let disk = FileDisk::open(data_dir.log()).map_err(ServerError::Disk)?;
    let usual = LogOptions::default();
    let options = LogOptions { segment_count_max: (limits.log_bytes_max.0 / usual.segment_bytes).max(2), ..usual };
    RaftLog::open(disk, options).map_err(|error| match error {
        LogError::Disk(DiskError::Locked { .. }) => {
            ServerError::Mismatch(format!("data-dir {} is in use by another process: each node needs its own", data_dir.path().display()))
        }
        error => ServerError::Log(error),
    })
}

fn open_store(limits: &Limits, data_dir: &DataDir) -> Result<(StoreWorker<EngineStore>, BTreeMap<ReplicaKey, ReplicaState>), StoreError> {
    if let Some(reason) = data_dir.suspect().reason() {
        tracing::warn!("the store failed when it was last used ({reason}): all of it is verified now");
        EngineStore::verify(&data_dir.store(), Depth::All)?;
    }
    let options = EngineOptions { cache_bytes: limits.store_cache_bytes, ..EngineOptions::default() };
    let store = EngineStore::open(&data_dir.store(), options)?;
    if let Some((journal, offset)) = store.journal_cut() {
        // As after any crash; whoever has lost something by it is named when the node starts.
        tracing::info!(
            "the store's journal {journal} was cut at byte {offset}, where it could not be read on: what lay behind is applied again from the log, or its replicas are re-seeded"
        );
    }
    let opened = StoreWorker::open(store, None).map_err(|error| match error {
        ApplyError::Store(error) => error,
        ApplyError::FailedBefore => unreachable!("nothing was done yet"),
    })?;
    if let Err(error) = data_dir.suspect().clear() {
        tracing::warn!("cannot remove what is noted of a store that is whole: {error}");
    }
    Ok(opened)
}

/// Puts a damaged store aside, if other nodes hold enough of everything in it: the replicas whose rows are gone
/// are then re-seeded under new ids, as any that is damaged (docs/decisions/0012). What this node remembers of the cluster
/// may lie in that very store and be out of date elsewhere, so the others are asked first.
async fn give_up_store(
    config: &ServerConfig,
    data_dir: &DataDir,
    member: &mut Member,
    profile: impl Fn(&str) -> NodeProfile,
    damage: &str,
) -> Result<(), ServerError> {
    let refused = |why: String| ServerError::Store(format!("it is damaged ({damage}), and {why}"));
    let known = member.identity.last_control().map_err(|error| refused(format!("the node's identity cannot be read: {error}")))?;
    let others = known.iter().flat_map(|state| &state.nodes).filter(|(node, _)| **node != member.identity.node);
    let mut targets = config.join.clone();
    for address in others.filter_map(|(_, record)| record.profile.http.as_ref()) {
        if !targets.contains(address) {
            targets.push(address.clone());
        }
    }
    if targets.is_empty() {
        return Err(refused("no other node has copies: restore the data-dir, or a backup".to_owned()));
    }
    tracing::error!("the state store is damaged: {damage}; the other nodes are asked whether they have all of it");
    let request = join_request(member.identity.node, profile(&member.identity.name), false);
    let state = join::join(&targets, &request, join::JOIN_TIME_MAX)
        .await
        .map_err(|error| refused(format!("the other nodes, which may have copies, cannot be asked: {error}; start this node again")))?;
    for key in member.recovered.replicas.keys() {
        if !others_suffice(&state, member.identity.node, *key) {
            return Err(refused(format!("{key} has no other copies to be replaced from: restore the data-dir, or a backup")));
        }
    }
    let (identity, batch) = boot::joined(member.identity.clone(), &state);
    write(&mut member.log, &batch)?;
    member.identity = identity;
    data_dir
        .put_store_aside()
        .and_then(|()| data_dir.suspect().clear())
        .map_err(|source| ServerError::System { attempted: "put the damaged state store aside", source })?;
    tracing::error!("the damaged state store is given up; its replicas are re-seeded from the other nodes");
    Ok(())
}

fn write(log: &mut RaftLog<FileDisk>, batch: &LogBatch) -> Result<(), ServerError> {
    log.append(batch).and_then(|()| log.sync()).and_then(|()| log.seal()).map_err(ServerError::Log)
}

fn join_request(id: NodeId, profile: NodeProfile, replace: bool) -> JoinRequest {
    JoinRequest {
        id,
        name: profile.name,
        http: profile.http.unwrap_or_default(),
        peer: profile.peer,
        resp: profile.resp,
        zone: profile.zone,
        weight: profile.weight,
        formats: (profile.formats.min, profile.formats.max),
        replace,
    }
}

/// Tells the cluster how this node is reached now, if that is not what it knows. The `seeds` of `--join` are told too, each by
/// itself: if all addresses have changed, no node finds another before one was told.
async fn introduce(handle: NodeHandle, profile: NodeProfile, seeds: Vec<String>) {
    loop {
        let known = handle.with_node(|node| {
            let id = node.id();
            (id, node.control().nodes.get(&id).map(|record| record.profile.clone()))
        });
        let (id, Some(known)) = known else { return };
        if profile == known {
            return;
        }
        let request = join_request(id, profile.clone(), false);
        for seed in &seeds {
            if let Err(reason) = join::introduce(seed, &request).await {
                tracing::debug!(seed, "cannot be told this node's addresses: {reason}");
            }
        }
        match handle.request(Request::Join(request), Duration::from_secs(5)).await {
            Reply::Joined { .. } => tracing::info!("told the cluster this node's changed addresses"),
            Reply::NameTaken { holder, .. } => {
                tracing::error!("node {holder} has taken the name {} meanwhile: this node cannot tell its addresses", profile.name);
                return;
            }
            other => tracing::debug!(?other, "the cluster does not take this node's addresses yet"),
        }
        tokio::time::sleep(INTRODUCE_INTERVAL).await;
    }
}

/// Waits until leaders are handed over and everything under way is answered, or time is up.
async fn drain(handle: &NodeHandle, door: tokio::task::JoinHandle<()>) {
    let deadline = Instant::now() + DRAIN_TIME_MAX;
    // A group half-way through a change of members may need this node's vote to finish it; without
    // the node nobody could lead the group, however many of its new members are there.
    let changing = |node: &mut Node| node.inspect().any(|group| !group.membership.outgoing.is_empty());
    let patience = Instant::now() + CHANGE_TIME_MAX;
    while Instant::now() < patience && handle.with_node(changing) {
        tokio::time::sleep(DRAIN_POLL_INTERVAL).await;
    }
    handle.0.inbox.push(Event::ShutDown);
    // The event is only handled in the loop's next turn.
    tokio::time::sleep(DRAIN_POLL_INTERVAL).await;
    let done = || handle.requests_in_flight() == 0 && handle.with_node(|node| node.has_handed_over());
    while Instant::now() < deadline && !(done() && door.is_finished()) {
        tokio::time::sleep(DRAIN_POLL_INTERVAL).await;
    }
    // The votes that make the new leaders may still be on their way to the disk and the links.
    tokio::time::sleep(LAST_WORDS_TIME).await;
}

fn node_config(config: &ServerConfig) -> NodeConfig {
    let limits = &config.limits;
    NodeConfig {
        replace_after: config.replace_after,
        requests_max: limits.requests_max,
        request_bytes_max: usize_of(limits.request_bytes_max.0),
        unapplied_bytes_max: usize_of(limits.unapplied_bytes_max.0),
        scrub_bytes_per_second: limits.scrub_bytes_per_second.0,
        ..NodeConfig::default()
    }
}

fn http_options(limits: &Limits) -> HttpOptions {
    HttpOptions {
        value_bytes_max: usize_of(limits.value_bytes_max.0),
        connections_max: file_limit::for_connections(limits.http_connections_max),
        body_bytes_max: usize_of(limits.request_bytes_max.0),
        answer_bytes_max: usize_of(limits.request_bytes_max.0),
        drain_timeout: DRAIN_TIME_MAX,
        ..HttpOptions::default()
    }
}

fn usize_of(bytes: u64) -> usize {
    usize::try_from(bytes).unwrap_or(usize::MAX)
}
