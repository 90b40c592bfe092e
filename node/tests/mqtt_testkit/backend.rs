//! [`Backend`] over a [`FakeLog`]: commits on a thread of its own, when the test lets it.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, Weak};
use std::time::{Duration, Instant};

use quorate::mqtt::auth::Authenticator;
use quorate::mqtt::backend::{Backend, PageReply, Quorum, Room};
use quorate::mqtt::session::PageWanted;
use quorate::mqtt::sys::SysBoard;
use quorate::mqtt::{MqttFront, MqttOptions, MqttServer};
use quorate_raft::{NodeEffects, Submission};
use quorate_store::access::Access;
use quorate_store::command::Publish;
use quorate_store::ids::{ClusterTime, Incarnation, Position, SessionId};
use tokio::sync::{Notify, watch};

use super::log::FakeLog;

/// See the module.
pub(crate) struct FakeBackend {
    log: Mutex<FakeLog>,
    changed: Condvar,
    effects: Arc<dyn NodeEffects>,
    pub(crate) board: Arc<SysBoard>,
    /// Nothing is committed while this is set.
    pub(crate) hold: AtomicBool,
    /// Waiting commands above which the proposer is busy.
    pub(crate) waiting_max: AtomicUsize,
    /// How often it said so.
    pub(crate) refused: AtomicUsize,
    /// Workers that are submitting: more than none while somebody else holds the log.
    pub(crate) submitting: AtomicUsize,
    room: Notify,
    quorum: watch::Sender<Quorum>,
    /// Who may do what.
    access: watch::Sender<Arc<Access>>,
    started: Instant,
    time: AtomicU64,
    incarnations: AtomicU64,
}

impl FakeBackend {
    /// A front end on an ephemeral port over a fresh log, with an incarnation and a quorum.
    pub(crate) fn start(options: &MqttOptions) -> (Arc<Self>, MqttServer) {
        Self::start_workers(options, 2)
    }

    /// The same with so many workers.
    pub(crate) fn start_workers(options: &MqttOptions, workers: usize) -> (Arc<Self>, MqttServer) {
        let options = MqttOptions { listen: Some(([127, 0, 0, 1], 0).into()), workers, ..options.clone() };
        Self::start_front(MqttFront::new(options).unwrap())
    }

    /// The same with this rule of who may connect.
    pub(crate) fn start_seen_by(options: &MqttOptions, by: Arc<dyn Authenticator>) -> (Arc<Self>, MqttServer) {
        let options = MqttOptions { listen: Some(([127, 0, 0, 1], 0).into()), workers: 2, ..options.clone() };
        Self::start_front(MqttFront::new(options).unwrap().with_authenticator(by))
    }

    fn start_front(front: MqttFront) -> (Arc<Self>, MqttServer) {
        let backend = Arc::new(Self {
            log: Mutex::default(),
            changed: Condvar::new(),
            effects: front.effects(),
            board: front.board(),
            hold: AtomicBool::new(false),
            waiting_max: AtomicUsize::new(usize::MAX),
            refused: AtomicUsize::new(0),
            submitting: AtomicUsize::new(0),
            room: Notify::new(),
            quorum: watch::channel(Quorum { has: true, elsewhere: None }).0,
            access: watch::channel(Arc::default()).0,
            started: Instant::now(),
            time: AtomicU64::new(0),
            incarnations: AtomicU64::new(0),
        });
        backend.incarnate();
        let committer = Arc::downgrade(&backend);
        std::thread::spawn(move || commit(&committer));
        let server = front.start(backend.clone(), Arc::new(|what: &str| panic!("{what}"))).unwrap();
        (backend, server)
    }

    pub(crate) fn log(&self) -> MutexGuard<'_, FakeLog> {
        self.log.lock().unwrap()
    }

    /// Commits again, or not.
    pub(crate) fn set_hold(&self, hold: bool) {
        self.hold.store(hold, Ordering::SeqCst);
        let _log = self.log();
        self.changed.notify_all();
    }

    /// Announces room.
    pub(crate) fn nudge(&self) {
        self.room.notify_waiters();
    }

    pub(crate) fn set_quorum(&self, has: bool, elsewhere: Option<&str>) {
        self.quorum.send_replace(Quorum { has, elsewhere: elsewhere.map(Arc::from) });
    }

    /// Changes who may do what, as the log would.
    pub(crate) fn change_access(&self, change: impl FnOnce(&mut Access)) {
        self.access.send_modify(|access| change(Arc::make_mut(access)));
    }

    pub(crate) fn incarnate(&self) -> Incarnation {
        let n = self.incarnations.fetch_add(1, Ordering::SeqCst) + 1;
        let incarnation = Incarnation(Position::from_u64(n));
        self.effects.incarnation_started(incarnation);
        incarnation
    }

    pub(crate) fn close_incarnation(&self) {
        let mut log = self.log();
        log.forget_waiting();
        log.end_all();
        self.effects.incarnation_closed(Incarnation(Position::from_u64(self.incarnations.load(Ordering::SeqCst))));
    }

    pub(crate) fn inject(&self, publish: &Publish) {
        let mut log = self.log();
        let run = log.inject(publish);
        self.effects.applied(run);
    }

    /// Applies what waits and hands it over, while nothing is committed by itself. `log` is the lock.
    pub(crate) fn apply_held(&self, log: &mut FakeLog) {
        let run = log.apply(usize::MAX);
        self.effects.applied(run);
    }

    /// Waits until a worker stands in front of the log, whose lock the caller holds.
    pub(crate) fn wait_for_a_stuck_worker(&self) {
        let deadline = Instant::now() + Duration::from_secs(20);
        while self.submitting.load(Ordering::SeqCst) == 0 {
            assert!(Instant::now() < deadline, "no worker came to the log");
            std::thread::yield_now();
        }
    }

    /// Waits until the log is as `wanted`.
    pub(crate) fn wait(&self, what: &str, wanted: impl Fn(&FakeLog) -> bool) {
        let deadline = Instant::now() + Duration::from_secs(20);
        let mut log = self.log();
        while !wanted(&log) {
            let left = deadline.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "waited in vain until {what}");
            log = self.changed.wait_timeout(log, left.min(Duration::from_millis(20))).unwrap().0;
        }
    }
}

fn commit(backend: &Weak<FakeBackend>) {
    while let Some(backend) = backend.upgrade() {
        let mut log = backend.log();
        if backend.hold.load(Ordering::SeqCst) || log.waiting() == 0 {
            let _ = backend.changed.wait_timeout(log, Duration::from_millis(20)).unwrap();
            continue;
        }
        let time = ClusterTime(backend.started.elapsed().as_millis() as u64);
        log.advance(time);
        let run = log.apply(64);
        backend.time.store(run.time.0, Ordering::SeqCst);
        // Under the lock: runs are handed over in their order.
        backend.effects.applied(run);
        drop(log);
        backend.changed.notify_all();
        backend.room.notify_waiters();
    }
}

impl Backend for FakeBackend {
    fn submit(&self, submission: Submission) -> Result<(), Box<Submission>> {
        self.submitting.fetch_add(1, Ordering::SeqCst);
        let mut log = self.log();
        self.submitting.fetch_sub(1, Ordering::SeqCst);
        if log.waiting() >= self.waiting_max.load(Ordering::SeqCst) {
            self.refused.fetch_add(1, Ordering::SeqCst);
            return Err(Box::new(submission));
        }
        log.submit(submission);
        drop(log);
        self.changed.notify_all();
        Ok(())
    }

    fn room(&self) -> Room<'_> {
        Box::pin(async {
            loop {
                let notified = self.room.notified();
                if self.log().waiting() < self.waiting_max.load(Ordering::SeqCst) {
                    return;
                }
                notified.await;
            }
        })
    }

    fn quorum(&self) -> watch::Receiver<Quorum> {
        self.quorum.subscribe()
    }

    fn access(&self) -> watch::Receiver<Arc<Access>> {
        self.access.subscribe()
    }

    fn cluster_time(&self) -> ClusterTime {
        ClusterTime(self.started.elapsed().as_millis() as u64)
    }

    fn has_time(&self) -> bool {
        true
    }

    fn route_qos0(&self, publish: Publish) {
        let mut log = self.log();
        let run = log.route_qos0(&publish);
        self.effects.applied(run);
    }

    fn request_page(&self, session: SessionId, wanted: PageWanted, reply: PageReply) {
        let page = self.log().page(session, wanted.from, wanted.rows_max, wanted.bytes_max);
        std::thread::spawn(move || reply(Ok(page)));
    }
}
