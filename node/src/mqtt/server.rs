//! The front end as a whole: the listener, the workers, and how they start, drain and stop.
//!
//! The log has to know where to send its effects before it starts, and the workers need the log: so
//! [`MqttFront::new`] makes the mailboxes, [`MqttFront::effects`] is given to the log, and
//! [`MqttFront::start`] opens the listener.

use std::cell::RefCell;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::atomic::{AtomicU16, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use ntex::io::{Io, IoConfig};
use ntex::time::Seconds;
use ntex::{ServiceFactory, SharedCfg};
use quorate_raft::NodeEffects;
use thiserror::Error;
use tokio::sync::{mpsc, oneshot};

use super::auth::jwt::{Jwt, JwtError};
use super::auth::pool::Pool;
use super::auth::{Authenticator, Chain};
use super::backend::Backend;
use super::conn;
use super::effects::{FrontEffects, Mailbox, ToWorker};
use super::listen::{Bounds, ListenSocket, Listener, ListenerSnapshot, OpenError, Opened, SocketFile};
use super::options::MqttOptions;
use super::reason::Reason;
use super::stats::{Stats, StatsSnapshot};
use super::sys::SysBoard;
use super::worker::{Shared, Worker};

/// How long a closing socket may take to send what is buffered.
const DISCONNECT_TIMEOUT: Seconds = Seconds(2);
/// Read buffer of a socket; it grows to the packet that does not fit.
const READ_BUFFER_BYTES: usize = 16 * 1024 - 24;
/// Buffers that a worker keeps for the next socket.
const BUFFERS_KEPT: usize = 128;
/// Free room below which a buffer is replaced.
const BUFFER_LOW_BYTES: usize = 1024;

/// Why the front end did not start.
#[derive(Debug, Error)]
pub enum StartError {
    /// A listener cannot be opened.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// There is nowhere to connect.
    #[error("no client could connect: there is no listener; set `mqtt` or `listeners`")]
    NoListener,
    /// Tokens cannot be verified.
    #[error(transparent)]
    Jwt(#[from] JwtError),
    /// No thread.
    #[error("cannot start the MQTT threads: {0}")]
    Thread(#[source] io::Error),
    /// More workers than a ticket can name, or none.
    #[error("{0} MQTT workers: there can be 1 to 1024")]
    Workers(usize),
}

/// Called when a worker dies: its connections would hang, so the process must end.
pub type OnFatal = Arc<dyn Fn(&str) + Send + Sync>;

/// The front end before it listens.
#[derive(Debug)]
pub struct MqttFront {
    options: Arc<MqttOptions>,
    authenticator: Arc<dyn Authenticator>,
    effects: Arc<FrontEffects>,
    board: Arc<SysBoard>,
    incarnation: Arc<AtomicU64>,
    mailboxes: Vec<Mailbox>,
    receivers: Vec<mpsc::UnboundedReceiver<ToWorker>>,
}

impl MqttFront {
    /// Prepares the workers' mailboxes.
    ///
    /// # Errors
    /// [`StartError::Workers`], [`StartError::Jwt`], [`StartError::Thread`].
    pub fn new(options: MqttOptions) -> Result<Self, StartError> {
        if !(1..=1024).contains(&options.workers) {
            return Err(StartError::Workers(options.workers));
        }
        let options = options.sane();
        let pool = Pool::start(options.auth_threads, options.auth_waiting_max).map_err(StartError::Thread)?;
        let has_keys = !options.jwt.key_file.as_os_str().is_empty();
        let jwt = if has_keys { Some(Jwt::open(options.jwt.clone())?) } else { None };
        let (mailboxes, receivers): (Vec<_>, Vec<_>) = (0..options.workers)
            .map(|_| {
                let (tx, rx) = mpsc::unbounded_channel();
                (Mailbox { tx, bytes: Arc::default(), stats: Arc::new(Stats::default()) }, rx)
            })
            .unzip();
        let incarnation = Arc::new(AtomicU64::new(0));
        let effects = FrontEffects::new(mailboxes.clone(), &options, incarnation.clone());
        Ok(Self {
            authenticator: Arc::new(Chain::new(options.allow_anonymous, Arc::new(pool), jwt.map(Arc::new))),
            options: Arc::new(options),
            effects: Arc::new(effects),
            board: Arc::default(),
            incarnation,
            mailboxes,
            receivers,
        })
    }

    /// Replaces the rule of who may connect.
    #[must_use]
    pub fn with_authenticator(mut self, authenticator: Arc<dyn Authenticator>) -> Self {
        self.authenticator = authenticator;
        self
    }

    /// Where the values of `$SYS` topics are shown to new subscribers.
    #[must_use]
    pub fn board(&self) -> Arc<SysBoard> {
        self.board.clone()
    }

    /// What the apply thread calls.
    #[must_use]
    pub fn effects(&self) -> Arc<dyn NodeEffects> {
        self.effects.clone()
    }

    /// Opens the listener and starts the workers. Clients are refused with 0x88 until this node has an
    /// incarnation and a quorum.
    ///
    /// # Errors
    /// [`StartError`] when the address is taken or a thread cannot be had.
    pub fn start(self, backend: Arc<dyn Backend>, on_fatal: OnFatal) -> Result<MqttServer, StartError> {
        let opened = self.options.all_listeners().into_iter().map(Opened::open).collect::<Result<Vec<_>, _>>()?;
        if opened.is_empty() {
            return Err(StartError::NoListener);
        }
        for Opened { listener, address, .. } in &opened {
            tracing::info!(%listener.options, ?address, "listening for MQTT");
        }
        let addresses = opened.iter().map(|opened| opened.address).collect();
        let listeners: Vec<_> = opened.iter().map(|opened| opened.listener.clone()).collect();
        let options = self.options;
        let shared = Arc::new(Shared {
            bounds: Bounds::new(
                options.connections_max,
                options.connections_per_address_max,
                options.connection_rate_max,
            ),
            told: Bounds::new(0, 0, options.connection_rate_max),
            refusals: AtomicUsize::new(0),
            options,
            authenticator: self.authenticator,
            board: self.board,
            incarnation: self.incarnation,
        });
        let threads = Threads {
            shared,
            backend,
            mailboxes: self.mailboxes.clone(),
            receivers: Arc::new(Mutex::new(self.receivers.into_iter().map(Some).collect())),
            next: Arc::new(AtomicU16::new(0)),
            on_fatal,
        };
        let (stop, stopped) = oneshot::channel();
        let thread = std::thread::Builder::new()
            .name("mqtt".into())
            .spawn(move || {
                let on_fatal = threads.on_fatal.clone();
                if let Err(error) = run(opened, threads, stopped) {
                    on_fatal(&format!("the MQTT listener failed: {error}"));
                }
            })
            .map_err(StartError::Thread)?;
        Ok(MqttServer {
            addresses,
            listeners,
            mailboxes: self.mailboxes,
            stop: Mutex::new(Some(stop)),
            thread: Mutex::new(Some(thread)),
        })
    }
}

/// What the worker threads are made of.
#[derive(Clone)]
struct Threads {
    shared: Arc<Shared>,
    backend: Arc<dyn Backend>,
    mailboxes: Vec<Mailbox>,
    receivers: Arc<Mutex<Vec<Option<mpsc::UnboundedReceiver<ToWorker>>>>>,
    next: Arc<AtomicU16>,
    on_fatal: OnFatal,
}

impl Threads {
    /// The worker of the thread that calls this, with its mailbox being served. `None` for a thread that
    /// replaces one that died: its mailbox is gone, and with it the outcomes its clients wait for.
    fn worker(&self) -> Option<Rc<Worker>> {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let mailbox = self.mailboxes.get(usize::from(id))?.clone();
        let rx = self.receivers.lock().unwrap_or_else(PoisonError::into_inner).get_mut(usize::from(id))?.take()?;
        let worker = Worker::new(id, self.shared.clone(), self.backend.clone(), mailbox);
        let alarm = Alarm(self.on_fatal.clone());
        let serving = worker.clone().serve_mailbox(rx);
        ntex::rt::spawn(async move {
            let alarm = alarm;
            serving.await;
            drop(alarm);
        });
        Some(worker)
    }
}

/// Raises the alarm when a worker's mailbox task panics.
struct Alarm(OnFatal);

impl Drop for Alarm {
    fn drop(&mut self) {
        if std::thread::panicking() {
            (self.0)("an MQTT worker panicked: its connections would hang");
        }
    }
}

thread_local! {
    /// The worker of this thread: one for all listeners.
    static WORKER: RefCell<Option<Rc<Worker>>> = const { RefCell::new(None) };
}

/// The ntex system: accepts, hands sockets to workers, stops when told.
fn run(opened: Vec<Opened>, threads: Threads, stopped: oneshot::Receiver<()>) -> io::Result<()> {
    let options = threads.shared.options.clone();
    let io = IoConfig::new()
        .set_disconnect_timeout(DISCONNECT_TIMEOUT)
        .set_read_buf(READ_BUFFER_BYTES, BUFFER_LOW_BYTES, BUFFERS_KEPT)
        .set_write_buf(options.outbound_bytes_max, BUFFER_LOW_BYTES, BUFFERS_KEPT);
    ntex::rt::System::new("mqtt", ntex::rt::DefaultRuntime).block_on(async move {
        let config: SharedCfg = SharedCfg::new("mqtt").add(io).into();
        let mut server =
            ntex::server::build().disable_signals().workers(options.workers).on_worker_start(async move || {
                let worker = threads.worker();
                if worker.is_none() {
                    (threads.on_fatal)("an MQTT worker died and was started again");
                }
                WORKER.set(worker);
                Ok::<_, io::Error>(())
            });
        let mut files: Vec<SocketFile> = Vec::new();
        for (n, Opened { listener, socket, file, .. }) in opened.into_iter().enumerate() {
            let name = format!("mqtt{n}");
            let service = async move |_| service(listener.clone());
            server = match socket {
                ListenSocket::Tcp(socket) => server.listen(&name, socket, service)?,
                ListenSocket::Unix(socket) => server.listen_uds(&name, socket, service)?,
            };
            server = server.config(&name, config.clone());
            files.extend(file);
        }
        let server = server.run();
        let handle = server.clone();
        ntex::rt::spawn(async move {
            let _ = stopped.await; // also when the front end is dropped
            handle.stop(false).await;
        });
        let served = server.await;
        drop(files);
        served
    })
}

/// What a worker does with the sockets of one listener.
fn service(
    listener: Arc<Listener>,
) -> impl ServiceFactory<Io, SharedCfg, Response = (), Error = io::Error, InitError = ()> {
    let worker = WORKER.with_borrow(Option::clone);
    ntex::fn_service(async move |io: Io| {
        if let Some(worker) = worker.clone() {
            // A task of its own: ntex's call of this service would hold more memory than the connection's task,
            // as long as there is the connection.
            ntex::rt::spawn(conn::serve(io, worker, listener.clone()));
        }
        Ok::<_, io::Error>(())
    })
}

/// The front end while it serves.
#[derive(Debug)]
pub struct MqttServer {
    addresses: Vec<Option<SocketAddr>>,
    listeners: Vec<Arc<Listener>>,
    mailboxes: Vec<Mailbox>,
    stop: Mutex<Option<oneshot::Sender<()>>>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl MqttServer {
    /// Where it listens first, with the port that was chosen for port 0; 0.0.0.0:0 when it has Unix sockets only.
    #[must_use]
    pub fn local_addr(&self) -> SocketAddr {
        self.addresses.iter().flatten().next().copied().unwrap_or(SocketAddr::from(([0, 0, 0, 0], 0)))
    }

    /// Where each listener listens, in the order of the options; none for a Unix socket.
    #[must_use]
    pub fn addresses(&self) -> &[Option<SocketAddr>] {
        &self.addresses
    }

    /// Counters of each listener.
    #[must_use]
    pub fn listeners(&self) -> Vec<ListenerSnapshot> {
        self.listeners.iter().map(|listener| listener.snapshot()).collect()
    }

    /// Whether any listener speaks TLS.
    #[must_use]
    pub fn has_tls(&self) -> bool {
        self.listeners.iter().any(|listener| listener.options.tls.is_some())
    }

    /// Reads the certificates again whose files have changed, or all; new connections use them. Files that cannot
    /// be used are logged and change nothing; then this is false. Blocks for as long as reading a few files takes.
    pub fn reload_tls(&self, all: bool) -> bool {
        self.listeners.iter().filter(|listener| !listener.reload(all)).count() == 0
    }

    /// Counters of all workers.
    #[must_use]
    pub fn stats(&self) -> StatsSnapshot {
        StatsSnapshot::of(&self.mailboxes.iter().map(|m| &*m.stats))
    }

    /// Sends all clients away, a few at a time, and from now on refuses new ones: to `server_reference`
    /// (0x9C) when there is another server, else with 0x8B. Clients of 3.1.1 are only closed. Returns when
    /// all have been told.
    pub async fn drain(&self, server_reference: Option<Arc<str>>) {
        let reason = if server_reference.is_some() { Reason::USE_ANOTHER_SERVER } else { Reason::SERVER_SHUTTING_DOWN };
        self.send_away(reason, server_reference).await;
    }

    /// As [`MqttServer::drain`], for a node that does not come back: clients should remember the other
    /// server (0x9D).
    pub async fn move_clients(&self, server_reference: Arc<str>) {
        self.send_away(Reason::SERVER_MOVED, Some(server_reference)).await;
    }

    async fn send_away(&self, reason: Reason, server_reference: Option<Arc<str>>) {
        let mut told = Vec::new();
        for mailbox in &self.mailboxes {
            let (done, wait) = oneshot::channel();
            let server_reference = server_reference.clone();
            if mailbox.tx.send(ToWorker::Drain { reason, server_reference, done }).is_ok() {
                told.push(wait);
            }
        }
        for wait in told {
            let _ = wait.await;
        }
    }

    /// Stops listening, closes what is still open and ends the threads. Blocks for up to a few seconds.
    pub fn stop(&self) {
        if let Some(stop) = self.stop.lock().unwrap_or_else(PoisonError::into_inner).take() {
            let _ = stop.send(());
        }
        if let Some(thread) = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take()
            && thread.join().is_err()
        {
            tracing::error!("the MQTT thread panicked");
        }
    }
}
