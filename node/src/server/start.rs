//! A node's life: who it is, its parts in order, then its stop in the opposite order.

use std::net::{SocketAddr, TcpListener as StdListener};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use quorate_http_admin::{AdminServer, Forwarder, Metrics, router};
use quorate_raft::identity::{DataDir, Identity};
use quorate_raft::{Cluster, FatalHook, NodeRole, RaftOptions, Start};
use quorate_store::command::{Command, NodeInfo, QueueFullPolicy, Setting};
use quorate_store::ids::NodeId;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};

use super::admin::{NodeAdmin, sample, stages};
use super::admission::{Joiner, check_cluster, join};
use super::options;
use super::stop::StopSignal;
use crate::cli::{EXIT_FAILED, EXIT_FATAL, Failure};
use crate::config::{Config, QueueFull};
use crate::mqtt::backend::Backend;
use crate::mqtt::listen::Endpoint;
use crate::mqtt::{MqttFront, MqttServer};

/// Least byte bound of a session's queue that is set at bootstrap.
const QUEUE_BYTES_LEAST: u64 = 1 << 30;
/// Handing leadership over takes this long at most; the others elect a leader anyway.
const TRANSFER_TIMEOUT: Duration = Duration::from_secs(3);
/// What was proposed is committed by then, or the cluster has other troubles.
const SETTLE_TIMEOUT: Duration = Duration::from_secs(2);
/// Between two looks at it.
const SETTLE_POLL: Duration = Duration::from_millis(5);
/// Marks a new cluster whose settings are not committed yet.
const SETTINGS_PENDING: &str = "settings.pending";
/// Between two attempts to commit the settings of a new cluster.
const SETTINGS_RETRY: Duration = Duration::from_millis(500);

/// Runs a node until `stop_signal`.
///
/// # Errors
/// What kept it from starting.
pub(crate) async fn run(mut config: Config, mut stop_signal: StopSignal) -> Result<(), Failure> {
    config.mqtt.0 = config.mqtt.0.map(|address| free("mqtt", address)).transpose()?;
    for listener in &mut config.listeners {
        if let Endpoint::Tcp(address) = &mut listener.endpoint {
            *address = free("listeners", *address)?;
        }
    }
    config.peer = free("peer", config.peer)?;
    let admin_listener =
        TcpListener::bind(config.admin).await.map_err(|error| in_use("admin", config.admin, &error))?;
    config.admin = admin_listener.local_addr().map_err(|error| in_use("admin", config.admin, &error))?;
    let info = node_info(&config);
    let start = tokio::select! {
        start = identify(&config, &info) => start?,
        signal = stop_signal.next() => return Err(Failure::new(format!("{signal} before the node had started"))),
    };

    let front = MqttFront::new(options::mqtt(&config)).map_err(|error| Failure::new(error.to_string()))?;
    let raft = RaftOptions {
        timings: options::timings(&config),
        log: options::retention(&config),
        limits: options::limits(&config),
        log_engine: options::log_engine(&config),
        rows: options::rows(&config),
        on_fatal: FatalHook(Arc::new(fatal)),
        ..RaftOptions::new(config.data_dir.clone(), config.peer.to_string(), info.clone(), start)
    };
    let cluster = tokio::select! {
        cluster = Cluster::start(raft, front.effects()) => cluster.map_err(|error| Failure::new(error.to_string()))?,
        // Nothing was promised to anybody yet: the process may end at any point of this.
        signal = stop_signal.next() => return Err(Failure::new(format!("{signal} before the node had started"))),
    };
    let node = cluster.node_id();
    let backend: Arc<dyn Backend> = Arc::new(crate::mqtt::cluster::ClusterBackend::new(cluster.clone()));
    let board = front.board();
    board.announce_as(node);
    let mqtt = front.start(backend, Arc::new(fatal)).map_err(|error| Failure::new(error.to_string()))?;
    let mqtt = Arc::new(mqtt);
    if config.sys_interval_s > 0 {
        let every = Duration::from_secs(config.sys_interval_s.into());
        tokio::spawn(crate::sys::run(cluster.clone(), Arc::downgrade(&mqtt), board, every));
    }

    let is_stopping = Arc::new(AtomicBool::new(false));
    let admin = start_admin(&config, admin_listener, &cluster, &mqtt, &is_stopping)?;
    tokio::spawn(commit_settings(config.clone(), cluster.clone()));
    watch_certificates(&mqtt, config.tls_reload_s)?;
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        node = node.0,
        name = info.name,
        data_dir = %config.data_dir.display(),
        mqtt = config.mqtt_public(),
        peer = %config.peer,
        admin = %admin.address(),
        "node started"
    );

    let signal = stop_signal.next().await;
    tracing::info!(signal, "stopping: clients are sent elsewhere, then everything is flushed; once more stops at once");
    is_stopping.store(true, Ordering::Release);
    tokio::select! {
        () = stop(&config, node, cluster, mqtt, admin) => {
            tracing::info!("node stopped");
            Ok(())
        }
        signal = stop_signal.next() => {
            tracing::warn!(signal, "stopping at once; the log recovers what was not flushed");
            std::process::exit(EXIT_FAILED.into());
        }
    }
}

/// Ends the process because it cannot go on: what it would do next could not be trusted.
///
/// The first to say so is heard; what fails after that fails because of it.
fn fatal(why: &str) {
    static IS_ENDING: AtomicBool = AtomicBool::new(false);
    if IS_ENDING.swap(true, Ordering::AcqRel) {
        loop {
            std::thread::park();
        }
    }
    tracing::error!(why, status = EXIT_FATAL, "this node cannot go on and ends now; the others do");
    std::process::exit(EXIT_FATAL.into());
}

/// An address that can be listened on now, with the port that stands for port 0.
fn free(key: &str, address: SocketAddr) -> Result<SocketAddr, Failure> {
    let listener = StdListener::bind(address).map_err(|error| in_use(key, address, &error))?;
    listener.local_addr().map_err(|error| in_use(key, address, &error))
}

fn in_use(key: &str, address: SocketAddr, error: &std::io::Error) -> Failure {
    let remedy = match error.kind() {
        std::io::ErrorKind::AddrInUse => "another process uses the port: stop it, or choose another port",
        std::io::ErrorKind::PermissionDenied => "ports below 1024 need a privilege: choose a higher one",
        std::io::ErrorKind::AddrNotAvailable => "this machine does not have that address: choose one of its own",
        _ => "choose another address",
    };
    Failure::new(format!("cannot listen on {address}: {error}\n  {remedy} with --{key} (or the key `{key}`)"))
}

/// Reads certificates again when their files change, and on SIGHUP, which never ends a node: what tells one to read
/// its certificates may not know that it has none.
fn watch_certificates(mqtt: &Arc<MqttServer>, reload_s: u64) -> Result<(), Failure> {
    let hangup = signal(SignalKind::hangup());
    let mut hangup = hangup.map_err(|error| Failure::new(format!("cannot listen for SIGHUP: {error}")))?;
    let reload_s = if mqtt.has_tls() { reload_s } else { 0 };
    let mqtt = Arc::downgrade(mqtt);
    tokio::spawn(async move {
        loop {
            let look = tokio::time::sleep(Duration::from_secs(reload_s));
            let all = tokio::select! {
                _ = hangup.recv() => {
                    tracing::info!("SIGHUP: the certificates of TLS listeners, if there are any, are read again");
                    true
                }
                () = look, if reload_s > 0 => false,
            };
            let Some(mqtt) = mqtt.upgrade() else { return };
            // It logs what it does.
            let _ = tokio::task::spawn_blocking(move || mqtt.reload_tls(all)).await;
        }
    });
    Ok(())
}

fn node_info(config: &Config) -> NodeInfo {
    let name = if config.name.is_empty() {
        rustix::system::uname().nodename().to_string_lossy().into_owned()
    } else {
        config.name.clone()
    };
    NodeInfo { name, mqtt: config.mqtt_public(), peer: config.peer_public(), admin: config.admin_public() }
}

/// Where others may reach it, an empty data directory is rather that of a machine whose disk was replaced: as a cluster of
/// its own it would take clients away from the one that has their sessions, and acknowledge what that one never sees.
fn belongs_nowhere(data_dir: &Path) -> Failure {
    Failure::new(format!(
        "the data directory {} is empty, and nothing says where this node belongs: give --join and the admin address of \
         any member, also when the disk of this machine was replaced, or --bootstrap to make a new cluster of it alone",
        data_dir.display()
    ))
}

/// Whose the data directory is, and what to do when it is nobody's.
async fn identify(config: &Config, info: &NodeInfo) -> Result<Start, Failure> {
    let open = || DataDir::open(&config.data_dir).map_err(|error| Failure::new(error.to_string()));
    let failed = |error: quorate_raft::identity::IdentityError| Failure::new(error.to_string());
    let data_dir = open()?;
    if let Some(identity) = data_dir.identity().map_err(failed)? {
        check_cluster(&identity, &config.join, &config.data_dir).await?;
        let Identity { cluster, node, .. } = identity;
        tracing::info!(%cluster, node = node.0, "going on as the node that the data directory belongs to");
        // A bootstrap that a crash interrupted is carried on.
        let is_new = config.data_dir.join(SETTINGS_PENDING).exists();
        return Ok(if is_new { Start::Bootstrap } else { Start::Restart });
    }
    if config.join.is_empty() {
        // A first start that was cut off before it had a name is carried on.
        let is_begun = config.bootstrap || config.data_dir.join(SETTINGS_PENDING).exists();
        if !is_begun && !config.peer.ip().to_canonical().is_loopback() {
            return Err(belongs_nowhere(&config.data_dir));
        }
        mark_settings_pending(&config.data_dir)?;
        tracing::info!("making a new cluster of this one node");
        return Ok(Start::Bootstrap);
    }
    // Left behind by an attempt to bootstrap that came to nothing.
    let _ = std::fs::remove_file(config.data_dir.join(SETTINGS_PENDING));
    let token = match config.join_token.as_str() {
        "" => data_dir.join_token().map_err(failed)?,
        text => u128::from_str_radix(text, 16).map_err(|error| Failure::new(format!("join_token: {error}")))?,
    };
    let joiner = Joiner {
        members: config.join.clone(),
        token,
        info: info.clone(),
        learner: config.learner,
        timeout: Duration::from_millis(config.join_timeout_ms),
    };
    let (id, cluster_id) = join(&joiner).await?;
    tracing::info!(node = id, cluster = %cluster_id, "admitted to the cluster");
    Ok(Start::Join { node_id: NodeId(id), cluster_id, token })
}

fn start_admin(
    config: &Config,
    listener: TcpListener,
    cluster: &Cluster,
    mqtt: &Arc<MqttServer>,
    is_stopping: &Arc<AtomicBool>,
) -> Result<AdminServer, Failure> {
    let limits = options::admin(config);
    let forwarder = Forwarder::new(cluster.node_id().0, limits.timeout)
        .map_err(|error| Failure::new(format!("cannot make an HTTP client for the administration: {error}")))?;
    let mqtt = Arc::downgrade(mqtt);
    let counted = move || mqtt.upgrade().map(|mqtt| sample(&mqtt.stats(), mqtt.listeners())).unwrap_or_default();
    let node = cluster.clone();
    let metrics = Metrics::new(Arc::new(counted), Arc::new(move || stages(&node)));
    let admin = NodeAdmin::new(cluster.clone(), is_stopping.clone());
    let router = router(admin, forwarder, Arc::new(metrics), limits);
    AdminServer::start(listener, router).map_err(|error| in_use("admin", config.admin, &error))
}

/// Stops the parts: leadership moves, clients are told, what is applied is flushed.
async fn stop(config: &Config, node: NodeId, cluster: Cluster, mqtt: Arc<MqttServer>, admin: AdminServer) {
    let (hands_over, elsewhere) = {
        let status = cluster.status();
        let status = status.borrow();
        let others = || status.nodes.iter().filter(|other| other.id != node && other.is_up);
        let elsewhere: Vec<&str> =
            others().map(|other| other.info.mqtt.as_str()).filter(|mqtt| !mqtt.is_empty()).collect();
        let has_heir = others().any(|other| other.is_reachable && other.role != NodeRole::Learner);
        let hands_over = status.leader == Some(node) && status.has_quorum && has_heir;
        (hands_over, (!elsewhere.is_empty()).then(|| elsewhere.join(" ")))
    };
    if hands_over {
        match tokio::time::timeout(TRANSFER_TIMEOUT, cluster.transfer(None)).await {
            Ok(Ok(())) => tracing::info!("leadership handed over"),
            Ok(Err(error)) => tracing::warn!(%error, "leadership not handed over; the others will elect a leader"),
            Err(_) => tracing::warn!("leadership not handed over in time; the others will elect a leader"),
        }
    }
    let drain_timeout = Duration::from_millis(config.drain_timeout_ms);
    if tokio::time::timeout(drain_timeout, mqtt.drain(elsewhere.map(Arc::from))).await.is_err() {
        tracing::warn!("not all clients were told in time; they are closed now");
    }
    settled(&cluster).await;
    let stopped = tokio::task::spawn_blocking(move || mqtt.stop()).await;
    if let Err(error) = stopped {
        tracing::warn!(%error, "the MQTT front end did not stop cleanly");
    }
    cluster.shutdown().await;
    admin.stop().await;
}

/// Waits until what the clients' ends brought is committed: else this node is declared lost later, its sessions are
/// taken for having been sent a whole window, and wills wait for that.
async fn settled(cluster: &Cluster) {
    let nothing_waits = async {
        while cluster.proposer().depth() != (0, 0) {
            tokio::time::sleep(SETTLE_POLL).await;
        }
    };
    if tokio::time::timeout(SETTLE_TIMEOUT, nothing_waits).await.is_err() {
        tracing::warn!("not everything was committed in time; the other nodes close what is left");
    }
}

/// Remembers, before there is a cluster, that its settings are to be committed: a crash between the two
/// must not leave a cluster with others than were asked for.
fn mark_settings_pending(data_dir: &Path) -> Result<(), Failure> {
    let mark = || -> std::io::Result<()> {
        std::fs::File::create(data_dir.join(SETTINGS_PENDING))?.sync_all()?;
        std::fs::File::open(data_dir)?.sync_all()
    };
    mark().map_err(|error| {
        let data_dir = data_dir.display();
        Failure::new(format!(
            "cannot write to the data directory {data_dir}: {error}\n  check its permissions and free space"
        ))
    })
}

/// Commits the replicated settings of a new cluster, once.
async fn commit_settings(config: Config, cluster: Cluster) {
    let pending = config.data_dir.join(SETTINGS_PENDING);
    if !pending.exists() {
        return;
    }
    let queue_bytes_max = match config.bootstrap_queue_bytes_max {
        0 => tenth_of_disk(&config.data_dir).max(QUEUE_BYTES_LEAST),
        bytes => bytes,
    };
    let policy = match config.bootstrap_queue_full {
        QueueFull::Reject => QueueFullPolicy::Reject,
        QueueFull::DropOldest => QueueFullPolicy::DropOldest,
    };
    for setting in [
        Setting::QueueBytesMax(queue_bytes_max),
        Setting::QueueFullPolicy(policy),
        Setting::SessionExpiryMax(config.bootstrap_session_expiry_s_max),
        Setting::IdempotencyKeysMax(config.bootstrap_idempotency_keys_max),
        Setting::IdempotencyWindow(config.bootstrap_idempotency_window_s),
        Setting::DelayMax(config.bootstrap_delay_s_max),
        Setting::DelayedBytesMax(config.bootstrap_delayed_bytes_max),
        Setting::SubscriptionsMax(config.bootstrap_subscriptions_max),
    ] {
        while let Err(error) = cluster.propose_direct(Command::Set(setting)).await {
            tracing::debug!(%error, ?setting, "a setting of the new cluster is not committed yet");
            tokio::time::sleep(SETTINGS_RETRY).await;
        }
        tracing::info!(?setting, "setting of the new cluster committed");
    }
    if let Err(error) = std::fs::remove_file(&pending) {
        tracing::warn!(path = %pending.display(), %error, "remove this file: its settings are committed");
    }
}

fn tenth_of_disk(data_dir: &Path) -> u64 {
    rustix::fs::statvfs(data_dir).map_or(0, |disk| disk.f_blocks.saturating_mul(disk.f_frsize) / 10)
}
