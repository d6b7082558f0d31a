//! The state of a server that its admin listener reports.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant, SystemTime};

use super::config::{Config, ReadyCheck};
use super::threads::Control;
#[cfg(feature = "tls")]
use super::tls::{CertificateExpiry, TlsConfig};
use super::worker_loop::Security;
#[cfg(feature = "cli")]
use crate::apps::files::CacheMetrics;
use crate::httpserver::AccessLog;
#[cfg(feature = "cli")]
use crate::httpserver::layers::AuthMetrics;
use crate::httpserver::metrics::HttpMetrics;
use crate::r#loop::metrics::LoopMetrics;
use crate::r#loop::{ConnectionLimit, Handle};

/// Time without a turn after which a loop counts as stuck.
const STALL_MAX: Duration = Duration::from_secs(5);

/// The state of a server, as far as its admin listener reports it.
pub(super) struct Status {
    pub(super) backend: &'static str,
    pub(super) limit: ConnectionLimit,
    pub(super) access_log: Option<AccessLog>,
    pub(super) loops: Vec<Arc<LoopMetrics>>,
    pub(super) http: Vec<Arc<HttpMetrics>>,
    #[cfg(feature = "cli")]
    pub(super) file_caches: Vec<Arc<CacheMetrics>>,
    #[cfg(feature = "cli")]
    pub(super) auth: Vec<Arc<AuthMetrics>>,
    pub(super) started_at: SystemTime,
    #[cfg_attr(not(feature = "tls"), allow(dead_code, reason = "it is empty"))]
    security: Security,
    #[cfg(feature = "tls")]
    tls: Option<TlsConfig>,
    is_started: AtomicBool,
    control: Arc<Control>,
    check: Option<ReadyCheck>,
    /// The time of the last turn of each worker that was noticed, in milliseconds since `origin`.
    turned_ms: Vec<AtomicU64>,
    origin: Instant,
    handles: OnceLock<Vec<Handle>>,
}

impl Status {
    /// Creates the status of a server with this number of workers. `control` reports whether the server is shutting
    /// down.
    pub(super) fn new(
        config: &Config,
        (backend, security): (&'static str, &Security),
        limit: &ConnectionLimit,
        (workers, control): (usize, &Arc<Control>),
    ) -> Arc<Self> {
        let http: Vec<_> = config.metrics.iter().flat_map(|all| (0..workers).map(|n| all.worker(n).0)).collect();
        let loops = match http.as_slice() {
            [] => (0..workers).map(|_| Arc::default()).collect(),
            http => http.iter().map(|metrics| Arc::clone(&metrics.event_loop)).collect(),
        };
        Arc::new(Status {
            backend,
            security: security.clone(),
            #[cfg(feature = "tls")]
            tls: config.tls.clone(),
            limit: limit.clone(),
            access_log: config.access_log.clone(),
            loops,
            http,
            #[cfg(feature = "cli")]
            file_caches: config.file_caches.clone(),
            #[cfg(feature = "cli")]
            auth: config.auth_metrics.clone(),
            started_at: SystemTime::now(),
            is_started: AtomicBool::new(false),
            control: Arc::clone(control),
            check: config.ready_check.clone(),
            turned_ms: (0..workers).map(|_| AtomicU64::new(0)).collect(),
            origin: Instant::now(),
            handles: OnceLock::new(),
        })
    }

    /// Records that all workers run.
    pub(super) fn start(&self, handles: &[Handle]) {
        self.turned_ms.iter().for_each(|turned| turned.store(self.elapsed_ms(), Ordering::Relaxed));
        // Called once.
        let _ = self.handles.set(handles.to_vec());
        self.is_started.store(true, Ordering::Release);
    }

    pub(super) fn is_draining(&self) -> bool {
        self.control.is_ending()
    }

    fn elapsed_ms(&self) -> u64 {
        u64::try_from(self.origin.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// Notes which loops have turned since the last call, and wakes all of them.
    pub(super) fn watch(&self, turns: &mut [u64]) {
        let Some(handles) = self.handles.get() else { return };
        for ((metrics, seen), turned) in self.loops.iter().zip(turns).zip(&self.turned_ms) {
            let now = metrics.lag.count();
            if now != std::mem::replace(seen, now) || metrics.has_ended() {
                turned.store(self.elapsed_ms(), Ordering::Relaxed);
            }
        }
        handles.iter().for_each(Handle::wake);
    }

    /// Returns the first worker whose loop is stuck, and for how long.
    pub(super) fn stuck_worker(&self) -> Option<(usize, Duration)> {
        if !self.is_started.load(Ordering::Acquire) {
            return None;
        }
        let since = |turned: &AtomicU64| {
            Duration::from_millis(self.elapsed_ms().saturating_sub(turned.load(Ordering::Relaxed)))
        };
        let stalls = self.turned_ms.iter().map(since).zip(&self.loops).enumerate();
        let mut stuck = stalls.filter(|(_, (time, metrics))| *time >= STALL_MAX && !metrics.has_ended());
        stuck.next().map(|(worker, (time, _))| (worker, time))
    }

    /// Returns the certificates in use.
    #[cfg(feature = "tls")]
    pub(super) fn certificates(&self) -> Vec<CertificateExpiry> {
        self.tls.as_ref().map(|config| self.security.expiries(config)).unwrap_or_default()
    }

    /// Returns whether the conditions include a check of the application, which may block.
    pub(super) fn has_check(&self) -> bool {
        self.check.is_some()
    }

    /// Returns the conditions of readiness with their names.
    pub(super) fn conditions(&self) -> Vec<(&'static str, Result<(), String>)> {
        let check = |holds: bool, problem: &str| if holds { Ok(()) } else { Err(problem.to_owned()) };
        let mut conditions = vec![
            ("started", check(self.is_started.load(Ordering::Acquire), "the workers are starting")),
            ("serving", check(!self.is_draining(), "shutting down")),
        ];
        if let Some(ready) = &self.check {
            conditions.push(("content", ready.call()));
        }
        conditions
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_loop_that_does_not_turn_is_stuck() {
        let limit = ConnectionLimit::new(1);
        let mut status = Arc::into_inner(Status::new(
            &Config::default(),
            ("select", &Security::default()),
            &limit,
            (2, &Arc::default()),
        ))
        .expect("not shared");
        status.start(&[]);
        assert_eq!(status.stuck_worker(), None);
        status.origin = status.origin.checked_sub(STALL_MAX * 2).expect("a time after the start of the system");
        assert_eq!(status.stuck_worker().map(|(worker, _)| worker), Some(0));
        let mut turns = [0, 0];
        status.loops[0].lag.add(1, 1);
        status.watch(&mut turns);
        assert_eq!(status.stuck_worker().map(|(worker, _)| worker), Some(1));
    }
}
