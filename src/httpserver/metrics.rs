//! Metrics of the requests of each worker, which any thread may read. They are written only by the worker's loop, so
//! counters use a relaxed load and store instead of an atomic read-modify-write. Finding the histogram of a series
//! clones an `Arc`, and locks a mutex if the series has a route: once per run of equal requests that are answered at
//! once, and once for any other request.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, OnceLock};

use crate::r#loop::metrics::{Counter, Histogram, LoopMetrics, clock_ns};
use crate::r#loop::{ConnId, lock};

/// Number of status codes, from 100.
const CODES: usize = 500;

/// Maximum number of runs of equal requests of a batch before the clock is read once more.
const RUNS_MAX: usize = 8;

/// A method in labels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Method {
    Get,
    Head,
    Post,
    Put,
    Delete,
    Connect,
    Options,
    Trace,
    Patch,
    Query,
    /// Any other method, so that clients cannot create labels.
    Other,
}

impl Method {
    const ALL: [(Method, &str); 11] = [
        (Method::Get, "GET"),
        (Method::Head, "HEAD"),
        (Method::Post, "POST"),
        (Method::Put, "PUT"),
        (Method::Delete, "DELETE"),
        (Method::Connect, "CONNECT"),
        (Method::Options, "OPTIONS"),
        (Method::Trace, "TRACE"),
        (Method::Patch, "PATCH"),
        (Method::Query, "QUERY"),
        (Method::Other, "_OTHER"),
    ];

    #[inline]
    pub(crate) fn of(name: &[u8]) -> Self {
        if name == b"GET" { Method::Get } else { Method::find(name) }
    }

    /// Returns the method of a request with this head.
    #[inline]
    pub(crate) fn of_head(head: &[u8]) -> Self {
        if head.starts_with(b"GET ") {
            Method::Get
        } else {
            Method::find(head.split(|byte| *byte == b' ').next().unwrap_or_default())
        }
    }

    #[inline(never)]
    fn find(name: &[u8]) -> Self {
        Method::ALL.iter().find(|(_, known)| known.as_bytes() == name).map_or(Method::Other, |(method, _)| *method)
    }
}

/// Metrics of the HTTP servers of all workers, for a [`Config`](crate::Config): the durations of requests by
/// method, status and route, the number in progress, and the size of bodies. Clones share them. Use separate metrics
/// for each server.
///
/// `Config::metrics` makes the admin listener (`Config::admin`) report them, `HttpServer::metrics` counts the requests
/// of a worker, and `Router::metrics` adds the route to their labels. Requests are reported only if the first two are
/// set, and routes only with all three.
///
/// # Examples
/// ```no_run
/// use serverd::server::{AdminAddress, Config, Metrics, StartError};
/// use serverd::{HttpServer, Router};
///
/// fn main() -> Result<(), StartError> {
///     let metrics = Metrics::default();
///     let config = Config::default().admin(AdminAddress::Tcp("127.0.0.1:9090".into())).metrics(metrics.clone());
///     config.serve(move |worker| {
///         let metrics = metrics.worker(worker);
///         let router = Router::new().get("/users/{id}", |_| "a user\n").metrics(&metrics);
///         HttpServer::with(router).metrics(&metrics)
///     })
/// }
/// ```
#[derive(Clone, Debug, Default)]
pub struct Metrics {
    workers: Arc<Mutex<BTreeMap<usize, WorkerMetrics>>>,
}

impl Metrics {
    /// Returns the metrics of a worker, by its number.
    #[must_use]
    pub fn worker(&self, number: usize) -> WorkerMetrics {
        let create = || WorkerMetrics(Arc::new(HttpMetrics::new()));
        lock(&self.workers).entry(number).or_insert_with(create).clone()
    }
}

/// HTTP metrics of one worker, from [`Metrics::worker`].
///
/// Updates are not atomic: use each value in only one [`HttpServer`](crate::HttpServer) and its routers, and do not
/// share a [`Metrics`] between two servers. To report requests and their routes, set `Config::metrics`,
/// `HttpServer::metrics` and `Router::metrics`: see [`Metrics`].
#[derive(Clone, Debug)]
pub struct WorkerMetrics(pub(crate) Arc<HttpMetrics>);

/// The metrics of one worker.
#[derive(Debug)]
pub(crate) struct HttpMetrics {
    /// The metrics of the worker's loop.
    pub(crate) event_loop: Arc<LoopMetrics>,
    /// By [`series`]; only those that have occurred take memory.
    series: Box<[OnceLock<Arc<Histogram>>]>,
    /// Requests in progress.
    pub(crate) active: Counter,
    pub(crate) request_bytes: Counter,
    pub(crate) response_bytes: Counter,
    /// Requests that the server has rejected itself, by status.
    refused: Box<[Counter]>,
    /// The route of the request whose handler was called last: one more than its index in `routes`, or 0.
    route: Counter,
    /// The patterns of the routes.
    routes: Mutex<Vec<Arc<str>>>,
    /// The durations of requests with a route, by [`Series`].
    routed: Mutex<BTreeMap<Series, Arc<Histogram>>>,
}

/// The durations of requests with a route, method and status: the first for requests without a route are those of
/// [`HttpMetrics::series`].
type Series = usize;

/// Number of series per route.
const SERIES: usize = Method::ALL.len() * CODES;

/// Returns the series of requests with this route, method and status.
#[inline]
fn series(route: usize, method: Method, status: u16) -> Series {
    route * SERIES + method as usize * CODES + code_index(status)
}

fn code_index(status: u16) -> usize {
    usize::from(status).saturating_sub(100).min(CODES - 1)
}

impl HttpMetrics {
    pub(crate) fn new() -> Self {
        HttpMetrics {
            event_loop: Arc::default(),
            series: (0..SERIES).map(|_| OnceLock::new()).collect(),
            active: Counter::default(),
            request_bytes: Counter::default(),
            response_bytes: Counter::default(),
            refused: (0..CODES).map(|_| Counter::default()).collect(),
            route: Counter::default(),
            routes: Mutex::default(),
            routed: Mutex::default(),
        }
    }

    /// Returns the number of the route with this pattern, which is added if it does not exist.
    pub(super) fn add_route(&self, pattern: &str) -> u64 {
        let mut routes = lock(&self.routes);
        let index = routes.iter().position(|known| **known == *pattern).unwrap_or_else(|| {
            routes.push(pattern.into());
            routes.len() - 1
        });
        index as u64 + 1
    }

    /// Sets the route of the request whose handler is called.
    #[inline]
    pub(super) fn set_route(&self, route: u64) {
        self.route.set(route);
    }

    /// Returns the route of the request whose handler was called, or 0, for the server, which calls this after each call.
    #[inline]
    #[allow(clippy::cast_possible_truncation, reason = "an index plus one")]
    fn take_route(&self) -> usize {
        let route = self.route.get() as usize;
        if route != 0 {
            self.route.set(0);
        }
        route
    }

    /// Counts a rejected request.
    pub(super) fn refuse(&self, status: u16) {
        self.refused[code_index(status)].add(1);
    }

    fn durations_of(&self, series: Series) -> Arc<Histogram> {
        match self.series.get(series) {
            Some(durations) => Arc::clone(durations.get_or_init(Arc::default)),
            None => Arc::clone(lock(&self.routed).entry(series).or_default()),
        }
    }

    /// Returns the durations of all requests so far.
    pub(crate) fn durations(&self) -> Vec<(Labels, Arc<Histogram>)> {
        let plain = self.series.iter().enumerate();
        let plain = plain.filter_map(|(series, durations)| Some((series, Arc::clone(durations.get()?))));
        let routed: Vec<_> = lock(&self.routed).iter().map(|(series, times)| (*series, Arc::clone(times))).collect();
        let patterns = lock(&self.routes).clone();
        let labels = |series: Series| Labels {
            route: (series / SERIES).checked_sub(1).and_then(|index| patterns.get(index).cloned()),
            method: Method::ALL[series % SERIES / CODES].1,
            code: 100 + series % CODES,
        };
        plain.chain(routed).map(|(series, durations)| (labels(series), durations)).collect()
    }

    /// Returns the statuses of rejected requests, and their number.
    pub(crate) fn refused(&self) -> impl Iterator<Item = (usize, u64)> {
        self.refused.iter().map(Counter::get).enumerate().filter(|(_, count)| *count > 0).map(|(i, n)| (100 + i, n))
    }
}

/// The labels of the durations of requests.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Labels {
    /// The pattern of the route in a router, if there is one.
    pub(crate) route: Option<Arc<str>>,
    pub(crate) method: &'static str,
    pub(crate) code: usize,
}

/// Counts the requests of one loop in its metrics.
///
/// Requests that are answered at once have the duration of their batch, the requests of one connection that are served in
/// a turn: from the end of the batch before it, or the return of the wait, to the next batch or the end of the turn. The
/// clock is thus read once per batch.
pub(super) struct RequestCounter {
    metrics: Arc<HttpMetrics>,
    /// The connection of the last batch.
    connection: ConnId,
    /// When the last batch ended, unless it was the only one of its turn.
    batch_end_ns: u64,
    /// Route, method and status of the last request, and its durations.
    last: Series,
    durations: Arc<Histogram>,
    /// The number of requests of the batch that are equal to the last one, which itself is one of them. Zero between turns.
    count: u64,
    /// Earlier runs of equal requests of the batch.
    runs: Vec<(Series, u64)>,
}

impl RequestCounter {
    pub(super) fn new(metrics: &Arc<HttpMetrics>) -> Self {
        RequestCounter {
            metrics: Arc::clone(metrics),
            connection: ConnId::detached(u32::MAX),
            batch_end_ns: 0,
            last: usize::MAX,
            durations: Arc::default(),
            count: 0,
            runs: Vec::with_capacity(RUNS_MAX),
        }
    }

    /// Counts a request that was answered at once, with `bytes` of content.
    #[inline]
    pub(super) fn count(&mut self, connection: ConnId, method: Method, status: u16, bytes: u64) {
        let series = series(self.take_route(), method, status);
        if self.connection != connection || self.last != series {
            self.begin_run(connection, series);
        }
        self.count += 1;
        self.metrics.response_bytes.add(bytes);
    }

    /// Begins a run of equal requests, and a batch if the connection is another one.
    #[inline(never)]
    fn begin_run(&mut self, connection: ConnId, series: Series) {
        self.enter(connection);
        if self.count > 0 {
            if self.runs.len() == RUNS_MAX {
                self.end_batch(clock_ns());
            } else {
                self.runs.push((self.last, self.count));
                self.count = 0;
            }
        }
        if self.last != series {
            self.last = series;
            self.durations = self.metrics.durations_of(series);
        }
    }

    /// Ends the batch of another connection, if there is one in progress. Returns when that of this connection has begun.
    pub(super) fn enter(&mut self, connection: ConnId) -> u64 {
        if self.connection != connection {
            if self.count > 0 {
                self.end_batch(clock_ns());
            }
            self.connection = connection;
        }
        self.batch_start_ns()
    }

    fn batch_start_ns(&self) -> u64 {
        self.batch_end_ns.max(self.metrics.event_loop.turn_start_ns.get())
    }

    /// Counts the requests of the batch, which has ended at this time.
    #[inline(never)]
    fn end_batch(&mut self, now_ns: u64) {
        let time_ns = now_ns.saturating_sub(self.batch_start_ns());
        self.durations.add(self.count, time_ns);
        self.end_runs(time_ns);
        self.count = 0;
        self.batch_end_ns = now_ns;
    }

    fn end_runs(&mut self, time_ns: u64) {
        for (series, count) in self.runs.drain(..) {
            self.metrics.durations_of(series).add(count, time_ns);
        }
    }

    /// Ends the last batch of a turn.
    #[inline]
    pub(super) fn end_turn(&mut self) {
        if self.count == 0 {
            return;
        }
        let turn = &self.metrics.event_loop;
        let (start_ns, time_ns) = (turn.turn_start_ns.get(), turn.turn_ns.get());
        if self.batch_end_ns > start_ns || !self.runs.is_empty() {
            return self.end_batch(start_ns + time_ns);
        }
        // The only batch, which has taken the whole turn.
        #[allow(clippy::cast_possible_truncation, reason = "the number of buckets is small")]
        self.durations.add_to(turn.turn_bucket.get() as usize, self.count, time_ns);
        self.count = 0;
    }

    /// Returns the route of the request whose handler was called, or 0.
    #[inline]
    pub(super) fn take_route(&self) -> usize {
        self.metrics.take_route()
    }

    /// Counts a request that is not answered at once.
    pub(super) fn begin(&self) {
        self.metrics.active.add(1);
    }

    /// Counts the end, at `now_ns`, of a request that was not answered at once.
    pub(super) fn end(
        &mut self,
        (route, method, status): (usize, Method, u16),
        (time_ns, now_ns): (u64, u64),
        (received, sent): (u64, u64),
    ) {
        if self.count > 0 {
            self.end_batch(now_ns);
        }
        self.batch_end_ns = now_ns;
        let metrics = &self.metrics;
        metrics.active.set(metrics.active.get().saturating_sub(1));
        metrics.request_bytes.add(received);
        metrics.response_bytes.add(sent);
        metrics.durations_of(series(route, method, status)).add(1, time_ns);
    }

    pub(super) fn refuse(&self, status: u16) {
        self.metrics.refuse(status);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::r#loop::metrics::TIME_BUCKETS;

    /// The method, status, counts per bucket and sum in microseconds of all durations.
    fn durations(metrics: &HttpMetrics) -> Vec<(&'static str, usize, [u64; TIME_BUCKETS], u64)> {
        let shown = |(labels, durations): (Labels, Arc<Histogram>)| {
            let counts = durations.buckets.each_ref().map(Counter::get);
            (labels.method, labels.code, counts, durations.sum_ns.get() / 1000)
        };
        metrics.durations().into_iter().map(shown).collect()
    }

    #[test]
    fn requests_are_counted_by_method_status_and_duration() {
        let metrics = Arc::new(HttpMetrics::new());
        let mut counter = RequestCounter::new(&metrics);
        for (method, status, micros) in [("GET", 200, 100), ("GET", 200, 101), ("BREW", 999, 20_000_000)] {
            counter.begin();
            assert_eq!(metrics.active.get(), 1);
            counter.end((0, Method::of(method.as_bytes()), status), (micros * 1000, 0), (1, 2));
        }
        let (mut get, mut other) = ([0; TIME_BUCKETS], [0; TIME_BUCKETS]);
        (get[0], get[1], other[15]) = (1, 1, 1);
        assert_eq!(durations(&metrics), [("GET", 200, get, 201), ("_OTHER", 599, other, 20_000_000)]);
        assert_eq!((metrics.active.get(), metrics.request_bytes.get(), metrics.response_bytes.get()), (0, 3, 6));
        for (index, (method, name)) in Method::ALL.iter().enumerate() {
            assert_eq!((*method as usize, Method::of(name.as_bytes())), (index, *method));
            assert_eq!(Method::of_head(format!("{name} / HTTP/1.1\r\n").as_bytes()), *method);
        }
    }

    #[test]
    fn requests_answered_at_once_have_the_duration_of_their_batch() {
        let metrics = Arc::new(HttpMetrics::new());
        let mut counter = RequestCounter::new(&metrics);
        let turn = |start: u64, end: u64| {
            metrics.event_loop.turn_start_ns.set(start * 1000);
            metrics.event_loop.record(end * 1000);
        };
        turn(1_000, 1_050);
        for (method, status) in [(Method::Get, 200), (Method::Get, 200), (Method::Head, 404), (Method::Get, 200)] {
            counter.count(ConnId::detached(1), method, status, 10);
        }
        assert_eq!(durations(&metrics).iter().map(|(_, _, counts, _)| counts[0]).sum::<u64>(), 0);
        counter.end_turn();
        turn(5_000, 5_200);
        counter.count(ConnId::detached(1), Method::Get, 200, 10);
        counter.end_turn();
        counter.end_turn();
        let (mut get, mut head) = ([0; TIME_BUCKETS], [0; TIME_BUCKETS]);
        (get[0], get[1], head[0]) = (3, 1, 1);
        assert_eq!(durations(&metrics), [("GET", 200, get, 3 * 50 + 200), ("HEAD", 404, head, 50)]);
        assert_eq!(metrics.response_bytes.get(), 50);
    }

    #[test]
    fn a_batch_begins_at_the_end_of_the_one_before() {
        let metrics = Arc::new(HttpMetrics::new());
        let mut counter = RequestCounter::new(&metrics);
        let turn = &metrics.event_loop;
        turn.turn_start_ns.set(1_000_000);
        counter.count(ConnId::detached(1), Method::Get, 200, 0);
        // A request that is not answered at once.
        assert_eq!(counter.enter(ConnId::detached(1)), 1_000_000);
        counter.begin();
        counter.end((0, Method::Put, 204), (7_000, 1_007_000), (0, 0));
        counter.count(ConnId::detached(1), Method::Get, 200, 0);
        turn.record(1_020_000);
        counter.end_turn();
        let of = |count| {
            let mut counts = [0; TIME_BUCKETS];
            counts[0] = count;
            counts
        };
        assert_eq!(durations(&metrics), [("GET", 200, of(2), 7 + 13), ("PUT", 204, of(1), 7)]);
        turn.turn_start_ns.set(5_000_000);
        assert_eq!(counter.enter(ConnId::detached(2)), 5_000_000);
    }

    #[test]
    fn requests_are_counted_by_route() {
        let metrics = Arc::new(HttpMetrics::new());
        let routes = ["/", "/users/{id}", "/"].map(|pattern| metrics.add_route(pattern));
        assert_eq!(routes, [1, 2, 1]);
        let mut counter = RequestCounter::new(&metrics);
        for route in [1, 2, 2] {
            metrics.set_route(route);
            counter.count(ConnId::detached(1), Method::Get, 200, 0);
        }
        // The route of a request is not that of the next one.
        counter.count(ConnId::detached(1), Method::Get, 200, 0);
        counter.end_turn();
        metrics.set_route(2);
        counter.begin();
        counter.end((counter.take_route(), Method::Put, 599), (1, 1), (0, 0));
        assert_eq!(counter.take_route(), 0);
        let counts: Vec<_> = metrics
            .durations()
            .into_iter()
            .map(|(labels, durations)| {
                (labels.route.as_deref().map(str::to_owned), labels.method, labels.code, durations.count())
            })
            .collect();
        let route = |pattern: &str| Some(pattern.to_owned());
        assert_eq!(
            counts,
            [
                (None, "GET", 200, 1),
                (route("/"), "GET", 200, 1),
                (route("/users/{id}"), "GET", 200, 2),
                (route("/users/{id}"), "PUT", 599, 1),
            ]
        );
    }

    #[test]
    fn batches_with_many_different_responses_are_counted_completely() {
        let metrics = Arc::new(HttpMetrics::new());
        let mut counter = RequestCounter::new(&metrics);
        for status in 200..260 {
            counter.count(ConnId::detached(1), Method::Get, status, 0);
            counter.count(ConnId::detached(2), Method::Get, status, 0);
        }
        counter.end_turn();
        let counts: Vec<u64> = durations(&metrics).iter().map(|(_, _, counts, _)| counts.iter().sum()).collect();
        assert_eq!(counts, [2; 60]);
    }
}
