//! Metrics of the requests of one worker. Only its loop updates them, so no update needs a locked instruction, and any
//! thread may read them.

use std::sync::{Arc, OnceLock};

use crate::r#loop::ConnId;
use crate::r#loop::metrics::{Counter, Histogram, LoopMetrics, clock_ns};

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
}

/// Returns the index of the durations of requests with this method and status.
#[inline]
fn series(method: Method, status: u16) -> usize {
    method as usize * CODES + code_index(status)
}

fn code_index(status: u16) -> usize {
    usize::from(status).saturating_sub(100).min(CODES - 1)
}

impl HttpMetrics {
    #[cfg(any(feature = "cli", test))]
    pub(crate) fn new() -> Self {
        HttpMetrics {
            event_loop: Arc::default(),
            series: (0..Method::ALL.len() * CODES).map(|_| OnceLock::new()).collect(),
            active: Counter::default(),
            request_bytes: Counter::default(),
            response_bytes: Counter::default(),
            refused: (0..CODES).map(|_| Counter::default()).collect(),
        }
    }

    /// Counts a rejected request.
    pub(super) fn refuse(&self, status: u16) {
        self.refused[code_index(status)].add(1);
    }

    fn durations_of(&self, series: usize) -> &Arc<Histogram> {
        self.series[series].get_or_init(Arc::default)
    }

    /// Returns the method, status and durations of all requests so far.
    pub(crate) fn durations(&self) -> impl Iterator<Item = (&'static str, usize, &Histogram)> {
        self.series.iter().enumerate().filter_map(|(index, durations)| {
            Some((Method::ALL[index / CODES].1, 100 + index % CODES, &**durations.get()?))
        })
    }

    /// Returns the statuses of rejected requests, and their number.
    pub(crate) fn refused(&self) -> impl Iterator<Item = (usize, u64)> {
        self.refused.iter().map(Counter::get).enumerate().filter(|(_, count)| *count > 0).map(|(i, n)| (100 + i, n))
    }
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
    /// Method and status of the last request, as a series, and its durations.
    last: usize,
    durations: Arc<Histogram>,
    /// The number of requests of the batch that are equal to the last one, which itself is one of them. Zero between turns.
    count: u64,
    /// Earlier runs of equal requests of the batch.
    runs: Vec<(usize, u64)>,
}

impl RequestCounter {
    #[cfg(any(feature = "cli", test))]
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
        let series = series(method, status);
        if self.connection != connection || self.last != series {
            self.begin_run(connection, series);
        }
        self.count += 1;
        self.metrics.response_bytes.add(bytes);
    }

    /// Begins a run of equal requests, and a batch if the connection is another one.
    #[inline(never)]
    fn begin_run(&mut self, connection: ConnId, series: usize) {
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
            self.durations = Arc::clone(self.metrics.durations_of(series));
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

    /// Counts a request that is not answered at once.
    pub(super) fn begin(&self) {
        self.metrics.active.add(1);
    }

    /// Counts the end, at `now_ns`, of a request that was not answered at once.
    pub(super) fn end(
        &mut self,
        (method, status): (Method, u16),
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
        metrics.durations_of(series(method, status)).add(1, time_ns);
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
        let shown = |(method, code, durations): (_, _, &Histogram)| {
            (method, code, durations.buckets.each_ref().map(Counter::get), durations.sum_ns.get() / 1000)
        };
        metrics.durations().map(shown).collect()
    }

    #[test]
    fn requests_are_counted_by_method_status_and_duration() {
        let metrics = Arc::new(HttpMetrics::new());
        let mut counter = RequestCounter::new(&metrics);
        for (method, status, micros) in [("GET", 200, 100), ("GET", 200, 101), ("BREW", 999, 20_000_000)] {
            counter.begin();
            assert_eq!(metrics.active.get(), 1);
            counter.end((Method::of(method.as_bytes()), status), (micros * 1000, 0), (1, 2));
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
        counter.end((Method::Put, 204), (7_000, 1_007_000), (0, 0));
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
