//! Records the requests of one loop: their lines in the access log, their metrics and their ids.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use http::{HeaderName, StatusCode};

use super::access_log::AccessLog;
use super::exchange_handle::Wakeup;
use super::log_format::{Arrival, ConnectionValues, Date, LogRecord, Outcome, Texts};
use super::metrics::{HttpMetrics, Method, RequestCounter};
use super::request::RequestHead;
use super::request_id::{RequestId, RequestIds, is_id};
use super::response::Response;
use crate::r#loop::metrics::{clock_micros, clock_us};
use crate::r#loop::{CloseInfo, CloseReason, ConnId, Peer, Wire};

/// Status logged if the client closes the connection before the response, as in nginx.
const CLIENT_CLOSED_REQUEST: u16 = 499;

/// Size of the batch, in bytes, at which it is passed to the writer without waiting for the end of the turn.
const BATCH_BYTES: usize = 64 * 1024;

/// Maximum number of records kept for reuse.
const SPARES_MAX: usize = 64;

/// Records the requests of one loop.
pub(crate) struct Recorder {
    lines: Option<Lines>,
    /// The header for the id of a request, if ids are passed on.
    id_header: Option<HeaderName>,
    ids: RequestIds,
    counter: Option<RequestCounter>,
    connections: Connections,
    /// When the last request of the turn ended, or the first one arrived, if the clock is read; 0 between turns.
    last_us: u64,
}

/// The last connection of a slot.
#[derive(Default)]
struct ConnectionRecord {
    id: Option<ConnId>,
    requests: u64,
    /// The address that the connection comes from, once the first request has arrived.
    source: Option<SocketAddr>,
    /// Complete once the first request has arrived.
    values: ConnectionValues,
    texts: Texts,
    in_flight: Option<InFlight>,
    /// The id of the request in progress, if ids are passed on.
    request_id: Option<RequestId>,
}

/// A request whose response has not ended.
struct InFlight {
    /// `None` if the request is not logged.
    record: Option<LogRecord>,
    /// The route that was chosen, for metrics.
    route: usize,
    method: Method,
    began_us: u64,
    first_byte_us: Option<u64>,
    head_bytes: u64,
    bytes_in: u64,
    /// Status of the response, once its head is written.
    status: Option<u16>,
}

/// The end of a request.
struct End {
    bytes_out: u64,
    unix_time: u64,
    now_us: u64,
    how: &'static str,
}

/// The records of the connections of a loop, by slot.
#[derive(Default)]
struct Connections {
    records: Vec<ConnectionRecord>,
    /// Number of connections so far.
    opened: u64,
    /// The addresses of connections are used.
    has_addresses: bool,
}

impl Connections {
    /// Returns the record of the connection, which is created if it does not exist.
    #[inline]
    fn of(&mut self, wire: &Wire<'_, Wakeup>) -> &mut ConnectionRecord {
        let slot = wire.id().slot();
        if self.records.get(slot).is_none_or(|record| record.id != Some(wire.id())) {
            let peer = if self.has_addresses { wire.addrs().peer() } else { None };
            self.add(wire.id(), peer);
        }
        &mut self.records[slot]
    }

    /// Starts the record of a connection, in place of that of the last one in its slot.
    #[inline(never)]
    fn add(&mut self, id: ConnId, peer: Option<Peer>) {
        let slot = id.slot();
        if slot >= self.records.len() {
            self.records.resize_with(slot + 1, ConnectionRecord::default);
        }
        let mut texts = std::mem::take(&mut self.records[slot].texts);
        texts.set_peer(peer);
        let values = ConnectionValues { peer, number: self.opened, ..ConnectionValues::default() };
        self.records[slot] = ConnectionRecord { id: Some(id), values, texts, ..ConnectionRecord::default() };
    }

    /// Counts a request of the connection, and returns its record.
    fn begin_request(&mut self, wire: &Wire<'_, Wakeup>) -> &mut ConnectionRecord {
        let connection = self.of(wire);
        if connection.requests == 0 {
            let proxied = wire.addrs().proxied().and_then(|proxied| proxied.source);
            connection.source = proxied.or(connection.values.peer.and_then(Peer::addr));
            connection.values.tls_version = tls_version(wire);
        }
        connection.requests += 1;
        connection
    }
}

impl ConnectionRecord {
    /// Returns what is logged of a request: of its head, or of the first line of a malformed request.
    fn arrival<'a>(
        &'a mut self,
        log: &AccessLog,
        (head, line): (Option<RequestHead<'a>>, &'a [u8]),
        (client, id): (Option<SocketAddr>, &'a [u8]),
    ) -> Arrival<'a> {
        self.texts.set_client(client.map(|client| client.ip()));
        self.values.worker = log.worker;
        log.format.fill(&mut self.texts, &self.values);
        Arrival {
            head,
            headers: head.map(|head| log.format.find_headers(&head)).unwrap_or_default(),
            line,
            client,
            texts: &self.texts,
            id,
            is_tls: self.values.tls_version.is_some(),
            number: self.requests,
            drops_query: log.filter.drops_query,
        }
    }
}

impl Recorder {
    pub(crate) fn new() -> Self {
        let (connections, ids) = (Connections::default(), RequestIds::new());
        Recorder { lines: None, id_header: None, ids, counter: None, connections, last_us: 0 }
    }

    /// Sets the log, or removes it.
    pub(crate) fn set_log(&mut self, log: Option<&AccessLog>) {
        self.lines = log.map(|log| Lines::new(log.clone()));
        self.connections.has_addresses = !self.only_counts();
    }

    /// Passes the ids of requests on in this header.
    pub(crate) fn set_id_header(&mut self, name: HeaderName) {
        self.id_header = Some(name);
        self.connections.has_addresses = true;
    }

    /// Counts requests in these metrics, or no longer.
    pub(crate) fn set_metrics(&mut self, metrics: Option<&Arc<HttpMetrics>>) {
        self.counter = metrics.map(RequestCounter::new);
    }

    /// Returns whether requests are only counted, so that one that is answered at once need not be begun.
    pub(super) fn only_counts(&self) -> bool {
        self.lines.is_none() && self.id_header.is_none()
    }

    /// Returns whether ids are passed on. Responses then have a header for them, and a request is begun before its handler
    /// is called; otherwise only if its response is not complete at once.
    pub(super) fn passes_ids(&self) -> bool {
        self.id_header.is_some()
    }

    pub(crate) fn open(&mut self, id: ConnId, peer: Option<Peer>) {
        self.connections.opened += 1;
        if self.connections.has_addresses {
            self.connections.add(id, peer);
        }
    }

    /// Returns the time in microseconds since an arbitrary origin, as precise as it is needed. `now` is the time of the
    /// turn.
    fn now_us(&self, now: Duration) -> u64 {
        if self.counter.is_some() || self.is_precise() { clock_us() } else { clock_micros(now) }
    }

    /// Returns whether lines contain a time that needs the clock.
    fn is_precise(&self) -> bool {
        self.lines.as_ref().is_some_and(Lines::is_precise)
    }

    /// Records the arrival of a request whose handler is about to be called. The first of a turn arrives now, and any
    /// other at the end of the one before, as the loop has not been idle since.
    pub(super) fn arrive(&mut self) {
        if self.last_us == 0 && self.is_precise() {
            self.last_us = clock_us();
        }
    }

    /// Returns when the current request has arrived, as precise as lines need it.
    fn arrived_us(&mut self, now: Duration) -> u64 {
        self.arrive();
        if self.is_precise() { self.last_us } else { clock_micros(now) }
    }
}

impl Recorder {
    /// Starts the record of a request whose head has been parsed.
    pub(crate) fn begin(&mut self, wire: &Wire<'_, Wakeup>, head: &RequestHead<'_>) {
        let mut record = None;
        if !self.only_counts() {
            let connection = self.connections.begin_request(wire);
            let (source, peer) = (connection.source, connection.values.peer);
            let client = head.client_addr_from(source);
            let id = self.request_id(source, head);
            if self.id_header.is_some() {
                let id = RequestId::new(&id);
                head.insert(id.clone());
                self.connections.of(wire).request_id = Some(id);
            }
            let from = client.map(Peer::Tcp).or(peer);
            let is_logged = self.lines.as_ref().is_some_and(|lines| !lines.log.filter.skips(from, head.path()));
            if is_logged {
                record = self.fill_record(wire, (Some(*head), &[]), (client, &id));
            }
        }
        self.insert(wire, record, Method::of(head.method_bytes()), head.as_bytes().len());
    }

    /// Returns the id that a trusted proxy has sent, or else a new one if it is used.
    fn request_id(&mut self, source: Option<SocketAddr>, head: &RequestHead<'_>) -> Vec<u8> {
        if let Some(name) = &self.id_header
            && head.is_from_trusted_proxy(source)
            && let Some(id) = head.header(name).filter(|id| is_id(id))
        {
            return id.to_vec();
        }
        let is_used = self.id_header.is_some() || self.lines.as_ref().is_some_and(|lines| lines.log.format.has_id);
        if is_used { self.ids.next().to_vec() } else { Vec::new() }
    }

    /// Starts the record of a malformed request, which begins with `input`. A request whose head was already parsed is
    /// logged normally.
    pub(crate) fn begin_malformed(&mut self, wire: &Wire<'_, Wakeup>, input: &[u8]) {
        if self.connections.of(wire).in_flight.is_some() {
            return;
        }
        let client = self.connections.begin_request(wire).source;
        let line = &input[..memchr::memchr2(b'\r', b'\n', input).unwrap_or(input.len())];
        let id = self.ids.next();
        self.connections.of(wire).request_id = Some(RequestId::new(&id));
        let record = self.fill_record(wire, (None, line), (client, &id));
        self.insert(wire, record, Method::Other, 0);
    }

    /// Fills the record of a request that is logged: its head, or the first line of a malformed request.
    fn fill_record(
        &mut self,
        wire: &Wire<'_, Wakeup>,
        (head, line): (Option<RequestHead<'_>>, &[u8]),
        (client, id): (Option<SocketAddr>, &[u8]),
    ) -> Option<LogRecord> {
        let lines = self.lines.as_mut()?;
        let mut record = lines.spares.pop().unwrap_or_default();
        let arrival = self.connections.of(wire).arrival(&lines.log, (head, line), (client, id));
        lines.log.format.begin(&mut record, &arrival);
        Some(record)
    }

    fn insert(&mut self, wire: &Wire<'_, Wakeup>, record: Option<LogRecord>, method: Method, head_bytes: usize) {
        let route = self.counter.as_ref().map_or(0, RequestCounter::take_route);
        let batch_start_us = self.counter.as_mut().map(|counter| {
            counter.begin();
            counter.enter(wire.id()) / 1000
        });
        let began_us = match batch_start_us {
            Some(start_us) if !self.is_precise() => start_us,
            _ => self.arrived_us(wire.now()),
        };
        let head_bytes = head_bytes as u64;
        self.connections.of(wire).in_flight = Some(InFlight {
            record,
            route,
            method,
            began_us,
            first_byte_us: None,
            head_bytes,
            bytes_in: 0,
            status: None,
        });
    }

    /// Records the route of the request in flight, whose handler was called.
    pub(crate) fn set_route(&mut self, wire: &Wire<'_, Wakeup>) {
        let route = self.counter.as_ref().map_or(0, RequestCounter::take_route);
        if route != 0
            && let Some(in_flight) = &mut self.connections.of(wire).in_flight
        {
            in_flight.route = route;
        }
    }

    /// Adds the id of the request to its response, if ids are passed on.
    pub(crate) fn add_id(&mut self, wire: &Wire<'_, Wakeup>, response: Response) -> Response {
        let Some(name) = self.id_header.clone() else { return response };
        match &self.connections.of(wire).request_id {
            Some(RequestId(id)) => response.header(name, id.as_bytes()),
            None => response,
        }
    }

    /// Counts bytes of a request body.
    pub(crate) fn add_received(&mut self, wire: &Wire<'_, Wakeup>, bytes: usize) {
        if let Some(in_flight) = &mut self.connections.of(wire).in_flight {
            in_flight.bytes_in += bytes as u64;
        }
    }

    /// Counts a request that the server rejects itself.
    pub(crate) fn refuse(&mut self, status: StatusCode) {
        if let Some(counter) = &self.counter {
            counter.refuse(status.as_u16());
        }
    }
}

impl Recorder {
    /// Counts a response with the status 200 that is complete at once; `bytes` is the length of its content. The head of
    /// the request are the last `head_len` consumed bytes. Out of line, as most servers count nothing.
    #[inline(never)]
    pub(crate) fn count_ok(&mut self, wire: &Wire<'_, Wakeup>, head_len: usize, bytes: u64) {
        if let Some(counter) = &mut self.counter {
            counter.count(wire.id(), Method::of_head(wire.last_consumed(head_len)), 200, bytes);
        }
    }

    /// Records a response with the status 200 that is complete at once; `bytes` is the length of its content.
    pub(crate) fn end_ok(&mut self, wire: &Wire<'_, Wakeup>, head: &RequestHead<'_>, bytes: u64) {
        if self.passes_ids() {
            self.set_route(wire);
            return self.end_at_once(wire, StatusCode::OK, bytes);
        }
        self.count_ok(wire, head.as_bytes().len(), bytes);
        if self.lines.is_some() {
            self.log_ok(wire, head, bytes);
        }
    }

    /// Writes the line of a response with the status 200 that is complete at once, to a request that was not begun.
    fn log_ok(&mut self, wire: &Wire<'_, Wakeup>, head: &RequestHead<'_>, bytes: u64) {
        let began_us = self.last_us;
        let Some(lines) = &mut self.lines else { return };
        let connection = self.connections.begin_request(wire);
        let client = head.client_addr_from(connection.source);
        let from = client.map(Peer::Tcp).or(connection.values.peer);
        let mut now_us = 0;
        if lines.is_precise() {
            now_us = clock_us();
            self.last_us = now_us;
        }
        let status = StatusCode::OK.as_u16();
        if lines.log.filter.skips(from, head.path()) || !lines.is_sampled(status) {
            return;
        }
        let id = if lines.log.format.has_id { self.ids.next() } else { Default::default() };
        let arrival = connection.arrival(&lines.log, (Some(*head), &[]), (client, &id));
        let time = lines.time(now_us, wire.unix_time());
        let duration_us = now_us.saturating_sub(began_us);
        let outcome = Outcome {
            date: &lines.date,
            millis: time,
            status,
            head_bytes: head.as_bytes().len() as u64,
            bytes_in: 0,
            bytes_out: bytes,
            duration_us,
            first_byte_us: Some(duration_us),
            end: "complete",
            color: lines.log.color,
        };
        lines.log.format.line(&mut lines.batch, &arrival, &outcome);
        lines.count_line();
    }

    /// Records a response that is complete at once.
    pub(crate) fn end_at_once(&mut self, wire: &Wire<'_, Wakeup>, status: StatusCode, bytes: u64) {
        let now_us = self.now_us(wire.now());
        self.set_status_at(wire, status, now_us);
        self.end_with(wire, bytes, now_us);
    }

    /// Records the status when the response head is written.
    pub(crate) fn set_status(&mut self, wire: &Wire<'_, Wakeup>, status: StatusCode) {
        self.set_status_at(wire, status, self.now_us(wire.now()));
    }

    fn set_status_at(&mut self, wire: &Wire<'_, Wakeup>, status: StatusCode, now_us: u64) {
        if let Some(in_flight) = &mut self.connections.of(wire).in_flight {
            in_flight.status = Some(status.as_u16());
            in_flight.first_byte_us = Some(now_us.saturating_sub(in_flight.began_us));
        }
    }

    /// Logs the request when its response is complete; `bytes` is the length of the content sent.
    pub(crate) fn end(&mut self, wire: &Wire<'_, Wakeup>, bytes: u64) {
        self.end_with(wire, bytes, self.now_us(wire.now()));
    }

    fn end_with(&mut self, wire: &Wire<'_, Wakeup>, bytes_out: u64, now_us: u64) {
        if self.last_us != 0 {
            self.last_us = now_us;
        }
        let connection = self.connections.of(wire);
        // A response that follows may be to a request that is not recorded.
        connection.request_id = None;
        if let Some(in_flight) = connection.in_flight.take() {
            self.write(in_flight, &End { bytes_out, unix_time: wire.unix_time(), now_us, how: "complete" });
        }
    }

    /// Logs the request in flight, if any, when its connection closes. `bytes` is the length of the content passed to
    /// the loop, part of which may be unsent.
    pub(crate) fn closed(&mut self, id: ConnId, bytes: u64, info: &CloseInfo) {
        let record = self.connections.records.get_mut(id.slot()).filter(|record| record.id == Some(id));
        let Some(in_flight) = record.and_then(|record| record.in_flight.take()) else { return };
        let (unix_time, now_us) = (info.unix_time, self.now_us(info.now));
        let bytes_out = bytes.saturating_sub(info.unsent_bytes);
        self.write(in_flight, &End { bytes_out, unix_time, now_us, how: how_ended(info) });
    }

    fn write(&mut self, mut in_flight: InFlight, end: &End) {
        if let Some(counter) = &mut self.counter {
            let status = in_flight.status.unwrap_or(CLIENT_CLOSED_REQUEST);
            let time_us = end.now_us.saturating_sub(in_flight.began_us);
            let bytes = (in_flight.bytes_in, end.bytes_out);
            counter.end((in_flight.route, in_flight.method, status), (time_us * 1000, end.now_us * 1000), bytes);
        }
        if let (Some(lines), Some(record)) = (&mut self.lines, in_flight.record.take()) {
            lines.write(record, &in_flight, end);
        }
    }

    /// Passes the lines of the turn to the writer.
    #[inline]
    pub(crate) fn end_turn(&mut self) {
        self.last_us = 0;
        if let Some(counter) = &mut self.counter {
            counter.end_turn();
        }
        if let Some(lines) = &mut self.lines {
            lines.pass_on();
        }
    }
}

/// The lines of one loop.
struct Lines {
    log: AccessLog,
    date: Date,
    wall_clock: WallClock,
    spares: Vec<LogRecord>,
    batch: Vec<u8>,
    count: u64,
    /// Requests since the last one that was logged, if only a sample is.
    unsampled: u32,
}

impl Lines {
    fn new(log: AccessLog) -> Self {
        let (date, wall_clock) = (Date::default(), WallClock::default());
        Lines { log, date, wall_clock, spares: Vec::new(), batch: Vec::new(), count: 0, unsampled: 0 }
    }

    fn is_precise(&self) -> bool {
        self.log.format.is_precise
    }

    fn write(&mut self, record: LogRecord, in_flight: &InFlight, end: &End) {
        let status = in_flight.status.unwrap_or(CLIENT_CLOSED_REQUEST);
        if self.is_sampled(status) {
            let millis = self.time(end.now_us, end.unix_time);
            let outcome = Outcome {
                date: &self.date,
                millis,
                status,
                head_bytes: in_flight.head_bytes,
                bytes_in: in_flight.bytes_in,
                bytes_out: end.bytes_out,
                duration_us: end.now_us.saturating_sub(in_flight.began_us),
                first_byte_us: in_flight.first_byte_us,
                end: end.how,
                color: self.log.color,
            };
            self.log.format.end(&mut self.batch, &record, &outcome);
            self.count_line();
        }
        if self.spares.len() < SPARES_MAX {
            self.spares.push(record);
        }
    }

    /// Sets the date, and returns the milliseconds within the second, if they are needed. `now_us` is the time of the
    /// monotonic clock.
    fn time(&mut self, now_us: u64, unix_time: u64) -> u64 {
        let time_us = if self.is_precise() { self.wall_clock.at(now_us) } else { unix_time * 1_000_000 };
        self.date.set(time_us / 1_000_000);
        time_us % 1_000_000 / 1000
    }

    /// Counts a line that was added to the batch.
    fn count_line(&mut self) {
        self.count += 1;
        if self.batch.len() >= BATCH_BYTES {
            self.pass_on();
        }
    }

    /// Returns whether a request that has ended with this status is one of the sample.
    fn is_sampled(&mut self, status: u16) -> bool {
        let sample = self.log.filter.sample;
        if status >= 400 || sample <= 1 {
            return true;
        }
        self.unsampled = (self.unsampled + 1) % sample;
        self.unsampled == 1
    }

    /// Passes the lines on to the writer.
    #[inline]
    fn pass_on(&mut self) {
        if self.count > 0 {
            self.log.sink.push(&mut self.batch, std::mem::take(&mut self.count));
        }
    }
}

/// Passes on lines recorded after the last turn, when the loop is stopped.
impl Drop for Lines {
    fn drop(&mut self) {
        self.pass_on();
    }
}

/// Converts times of the monotonic clock, for times with milliseconds, without reading the wall clock for each.
#[derive(Default)]
struct WallClock {
    /// The difference of the clocks.
    offset_us: u64,
    /// When the wall clock is read again.
    until_us: u64,
}

impl WallClock {
    /// Returns the time since 1970 in microseconds.
    fn at(&mut self, now_us: u64) -> u64 {
        if now_us >= self.until_us {
            let unix_time = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
            self.offset_us = clock_micros(unix_time).saturating_sub(clock_us());
            self.until_us = now_us + 1_000_000;
        }
        self.offset_us + now_us
    }
}

/// Returns the version of TLS as nginx names it.
#[cfg(feature = "tls")]
fn tls_version(wire: &Wire<'_, Wakeup>) -> Option<&'static str> {
    let addrs = wire.addrs();
    let info = if addrs.is_secure() { addrs.tls() } else { None };
    info.map(|info| if info.version == crate::tls::TlsVersion::Tls12 { "TLSv1.2" } else { "TLSv1.3" })
}

#[cfg(not(feature = "tls"))]
fn tls_version(_: &Wire<'_, Wakeup>) -> Option<&'static str> {
    None
}

/// Returns how a request has ended that was in flight when its connection closed.
fn how_ended(info: &CloseInfo) -> &'static str {
    match &info.reason {
        CloseReason::Done if info.unsent_bytes == 0 => "complete",
        CloseReason::Done | CloseReason::Peer => "client_closed",
        CloseReason::Timeout(_) => "timeout",
        CloseReason::Evicted => "evicted",
        CloseReason::TooSlow => "too_slow",
        CloseReason::Refused => "refused",
        CloseReason::Drain => "shutdown",
        CloseReason::Panicked => "panic",
        CloseReason::Error(error) => match error.kind() {
            io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionAborted => {
                "client_closed"
            }
            _ => "error",
        },
    }
}
