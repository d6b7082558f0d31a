//! Metrics in the Prometheus text format, version 0.0.4.

use std::collections::BTreeMap;
use std::fmt::{Display, Write as _};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use super::admin_status::Status;
#[cfg(feature = "tls")]
use super::tls::CertificateExpiry;
#[cfg(feature = "cli")]
use crate::apps::files::CacheMetrics;
#[cfg(feature = "cli")]
use crate::httpserver::layers::AuthResult;
use crate::httpserver::metrics::{HttpMetrics, Labels};
use crate::r#loop::metrics::{CLOSE_REASONS, Histogram, LoopMetrics, TIME_BOUNDS, TIME_BUCKETS};

/// Writes families of metrics. Writing to a string cannot fail.
struct Families(String);

impl Families {
    /// Begins a family.
    fn begin(&mut self, name: &str, kind: &str, help: &str) {
        let _ = writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    /// Writes a sample. `labels` are in braces, or empty.
    fn sample(&mut self, name: &str, labels: &str, value: impl Display) {
        let _ = writeln!(self.0, "{name}{labels} {value}");
    }

    /// Writes a family with one sample without labels.
    fn single(&mut self, name: &str, kind: &str, help: &str, value: impl Display) {
        self.begin(name, kind, help);
        self.sample(name, "", value);
    }

    /// Writes a family with one sample per worker.
    fn per_worker<M>(&mut self, name: &str, (kind, help): (&str, &str), workers: &[Arc<M>], value: impl Fn(&M) -> u64) {
        self.begin(name, kind, help);
        for (worker, metrics) in workers.iter().enumerate() {
            self.sample(name, &format!("{{worker=\"{worker}\"}}"), value(metrics));
        }
    }

    /// Writes a histogram of times. `labels` are without braces.
    fn histogram(&mut self, name: &str, labels: &str, times: &Times) {
        let mut total = 0;
        for (index, count) in times.counts.iter().enumerate() {
            total += count;
            let bound =
                TIME_BOUNDS.ns.get(index).map_or_else(|| "+Inf".to_owned(), |bound| seconds(*bound).to_string());
            let _ = writeln!(self.0, "{name}_bucket{{{labels},le=\"{bound}\"}} {total}");
        }
        let sum = seconds(times.sum_ns);
        let _ = writeln!(self.0, "{name}_sum{{{labels}}} {sum}\n{name}_count{{{labels}}} {total}");
    }
}

/// The sum of histograms.
#[derive(Default)]
struct Times {
    counts: [u64; TIME_BUCKETS],
    sum_ns: u64,
}

impl Times {
    fn add(&mut self, histogram: &Histogram) {
        self.counts.iter_mut().zip(&histogram.buckets).for_each(|(count, bucket)| *count += bucket.get());
        self.sum_ns += histogram.sum_ns.get();
    }
}

/// Converts nanoseconds.
#[allow(clippy::cast_precision_loss, reason = "exact below 2^53, 104 days")]
fn seconds(ns: u64) -> f64 {
    ns as f64 / 1e9
}

/// Returns all metrics.
pub(super) fn render(status: &Status) -> String {
    let mut families = Families(String::with_capacity(16 * 1024));
    server(&mut families, status);
    connections(&mut families, status);
    loops(&mut families, &status.loops);
    if !status.http.is_empty() {
        http(&mut families, status);
    }
    #[cfg(feature = "cli")]
    files(&mut families, status);
    #[cfg(feature = "tls")]
    certificates(&mut families, status);
    process(&mut families, status.started_at);
    families.0
}

fn server(families: &mut Families, status: &Status) {
    families.begin("serverd_build_info", "gauge", "Version and configuration of the server.");
    let (version, backend) = (env!("CARGO_PKG_VERSION"), status.backend);
    families.sample("serverd_build_info", &format!("{{version=\"{version}\",backend=\"{backend}\"}}"), 1);
    families.single("serverd_workers", "gauge", "Worker threads.", status.loops.len());
    let draining = u8::from(status.is_draining());
    families.single("serverd_draining", "gauge", "1 during a graceful shutdown.", draining);
    families.single("serverd_connections_max", "gauge", "Maximum open connections.", status.limit.max());
    if let Some(log) = &status.access_log {
        let name = "serverd_access_log_lines_total";
        families.begin(name, "counter", "Lines of the access log.");
        for (result, count) in [("written", log.written()), ("dropped", log.dropped())] {
            families.sample(name, &format!("{{result=\"{result}\"}}"), count);
        }
    }
}

/// Returns a counter of a loop.
type Value = fn(&LoopMetrics) -> u64;

fn loops(families: &mut Families, loops: &[Arc<LoopMetrics>]) {
    let counters: [(&str, &str, Value); 4] = [
        ("serverd_connections_accepted_total", "Connections opened.", |loop_| loop_.opened.get()),
        ("serverd_connections_refused_total", "Connections reset because of the limit per address.", |loop_| {
            loop_.refused.get()
        }),
        ("serverd_panics_total", "Panics of the application.", |loop_| loop_.panics.get()),
        ("serverd_loop_turns_total", "Turns of the event loop.", |loop_| loop_.lag.count()),
    ];
    for (name, help, value) in counters {
        families.per_worker(name, ("counter", help), loops, value);
    }
    closed_and_failed(families, loops);
    let help = "Handshakes of TLS and of the PROXY protocol; timeouts count as failed.";
    families.begin("serverd_tls_handshakes_total", "counter", help);
    for (worker, metrics) in loops.iter().enumerate() {
        for (result, value) in [("ok", &metrics.handshakes), ("failed", &metrics.failed_handshakes)] {
            let labels = format!("{{worker=\"{worker}\",result=\"{result}\"}}");
            families.sample("serverd_tls_handshakes_total", &labels, value.get());
        }
    }
    let name = "serverd_loop_lag_seconds";
    families.begin(name, "histogram", "Time from the end of a wait to the next wait.");
    for (worker, metrics) in loops.iter().enumerate() {
        let mut times = Times::default();
        times.add(&metrics.lag);
        families.histogram(name, &format!("worker=\"{worker}\""), &times);
    }
}

/// Writes closes by their reason, and failed accepts by the number of the error.
fn closed_and_failed(families: &mut Families, loops: &[Arc<LoopMetrics>]) {
    let name = "serverd_connections_closed_total";
    families.begin(name, "counter", "Connections closed.");
    for (index, reason) in CLOSE_REASONS.iter().enumerate() {
        let count: u64 = loops.iter().map(|metrics| metrics.closes[index].get()).sum();
        families.sample(name, &format!("{{reason=\"{reason}\"}}"), count);
    }
    let name = "serverd_accept_errors_total";
    families.begin(name, "counter", "Failed accepts by error number; 0 if unknown.");
    let mut errors = BTreeMap::from([(0, 0)]);
    for (number, count) in loops.iter().flat_map(|metrics| metrics.accept_errors().iter()) {
        *errors.entry(number).or_insert(0) += count;
    }
    for (number, count) in errors {
        families.sample(name, &format!("{{errno=\"{number}\"}}"), count);
    }
}

/// Writes the open connections. A request in progress makes one active; those of a TCP server are all active.
fn connections(families: &mut Families, status: &Status) {
    let name = "serverd_connections";
    let help = "Open connections; active ones have a request in progress. Those of a TCP server are all active.";
    families.begin(name, "gauge", help);
    for (worker, metrics) in status.loops.iter().enumerate() {
        let open = metrics.connections.get();
        let active = status.http.get(worker).map_or(open, |http| http.active.get().min(open));
        for (state, count) in [("active", active), ("idle", open - active)] {
            families.sample(name, &format!("{{worker=\"{worker}\",state=\"{state}\"}}"), count);
        }
    }
}

fn http(families: &mut Families, status: &Status) {
    let sum = |value: fn(&HttpMetrics) -> u64| -> u64 { status.http.iter().map(|metrics| value(metrics)).sum() };
    let (active, received) = (sum(|http| http.active.get()), sum(|http| http.request_bytes.get()));
    let sent = sum(|http| http.response_bytes.get());
    families.single("http_server_active_requests", "gauge", "Requests in progress.", active);
    families.single("http_server_request_body_bytes_total", "counter", "Bytes of request bodies received.", received);
    families.single("http_server_response_body_bytes_total", "counter", "Bytes of response bodies sent.", sent);
    let mut refused = BTreeMap::new();
    for (code, count) in status.http.iter().flat_map(|metrics| metrics.refused()) {
        *refused.entry(code).or_insert(0) += count;
    }
    families.begin("serverd_refused_total", "counter", "Malformed requests, and those beyond a limit, by status.");
    for (code, count) in refused {
        families.sample("serverd_refused_total", &format!("{{status=\"{code}\"}}"), count);
    }
    let name = "http_server_request_duration_seconds";
    let help =
        "Time from the head of a request to the end of its response; most immediate responses are timed per batch.";
    families.begin(name, "histogram", help);
    let mut series = BTreeMap::<_, Times>::new();
    for (labels, durations) in status.http.iter().flat_map(|metrics| metrics.durations()) {
        series.entry(labels).or_default().add(&durations);
    }
    for (Labels { route, method, code }, times) in &series {
        let route = route.as_ref().map(|route| format!(",route=\"{}\"", escaped(route)));
        let labels = format!("method=\"{method}\",code=\"{code}\"{}", route.unwrap_or_default());
        families.histogram(name, &labels, times);
    }
}

/// Writes when the certificates expire. Two with the same name and file would be one series, so the first to expire counts.
#[cfg(feature = "tls")]
fn certificates(families: &mut Families, status: &Status) {
    let mut series = BTreeMap::new();
    for CertificateExpiry { name, file, not_after } in status.certificates() {
        let seconds = not_after.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        series.entry((name, file)).and_modify(|first: &mut u64| *first = seconds.min(*first)).or_insert(seconds);
    }
    if series.is_empty() {
        return;
    }
    let name = "serverd_tls_certificate_expiry_seconds";
    families.begin(name, "gauge", "End of the validity of a certificate, since 1970.");
    for ((dns_name, file), seconds) in series {
        let labels = format!("{{name=\"{}\",file=\"{}\"}}", escaped(&dns_name), escaped(&file));
        families.sample(name, &labels, seconds);
    }
}

/// Escapes the value of a label.
fn escaped(value: &str) -> String {
    value.replace('\\', r"\\").replace('"', "\\\"").replace('\n', r"\n")
}

/// Writes the metrics of a server of files.
#[cfg(feature = "cli")]
fn files(families: &mut Families, status: &Status) {
    if !status.auth.is_empty() {
        let name = "serverd_auth_total";
        families.begin(name, "counter", "Requests by the result of Basic authentication.");
        for (result, label) in AuthResult::ALL {
            let count: u64 = status.auth.iter().map(|metrics| metrics.get(result)).sum();
            families.sample(name, &format!("{{result=\"{label}\"}}"), count);
        }
    }
    if !status.file_caches.is_empty() {
        file_cache(families, &status.file_caches);
    }
}

/// Writes the metrics of the caches of files. Each worker has one of its own.
#[cfg(feature = "cli")]
fn file_cache(families: &mut Families, caches: &[Arc<CacheMetrics>]) {
    let name = "serverd_file_cache_lookups_total";
    let help = "Cache look-ups: hit (file system not consulted), revalidated (still current), miss (loaded from disk).";
    families.begin(name, "counter", help);
    for (worker, cache) in caches.iter().enumerate() {
        for (result, count) in [("hit", &cache.hits), ("revalidated", &cache.revalidated), ("miss", &cache.misses)] {
            families.sample(name, &format!("{{worker=\"{worker}\",result=\"{result}\"}}"), count.get());
        }
    }
    let name = "serverd_file_cache_entries";
    families.begin(name, "gauge", "Cached files: small ones in memory, and large ones that are open.");
    for (worker, cache) in caches.iter().enumerate() {
        for (kind, count) in [("memory", cache.files.get()), ("open", cache.open_files())] {
            families.sample(name, &format!("{{worker=\"{worker}\",kind=\"{kind}\"}}"), count);
        }
    }
    let name = "serverd_file_cache_evictions_total";
    let help = "Files removed from the cache to make room for others.";
    families.per_worker(name, ("counter", help), caches, CacheMetrics::evictions);
    let (name, help) = ("serverd_file_cache_bytes", "Memory used for small files.");
    families.per_worker(name, ("gauge", help), caches, |cache| cache.bytes.get());
    let (name, help) = ("serverd_file_cache_bytes_max", "Maximum memory used for small files.");
    families.per_worker(name, ("gauge", help), caches, |cache| cache.bytes_max.get());
}

/// Writes the metrics of the process, under the names of the Prometheus client libraries.
fn process(families: &mut Families, started_at: SystemTime) {
    let start = started_at.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
    families.single("process_start_time_seconds", "gauge", "Start time since 1970.", start);
    #[cfg(target_os = "linux")]
    linux_process(families);
}

#[cfg(target_os = "linux")]
fn linux_process(families: &mut Families) {
    /// Units of CPU times in procfs, which are the same on all architectures.
    const TICKS_PER_SECOND: u64 = 100;
    let read = |file: &str| std::fs::read_to_string(format!("/proc/self/{file}")).unwrap_or_default();
    // The name of the process, in parentheses, may contain spaces.
    let stat = read("stat");
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_ascii_whitespace().collect();
    let field = |index: usize| fields.get(index).and_then(|text| text.parse::<u64>().ok());
    if let (Some(user), Some(system)) = (field(11), field(12)) {
        let cpu = seconds((user + system) * (1_000_000_000 / TICKS_PER_SECOND));
        families.single("process_cpu_seconds_total", "counter", "CPU time used.", cpu);
    }
    if let Some(pages) = read("statm").split(' ').nth(1).and_then(|text| text.parse::<u64>().ok()) {
        let bytes = pages * rustix::param::page_size() as u64;
        families.single("process_resident_memory_bytes", "gauge", "Resident memory.", bytes);
    }
    if let Some(count) = open_files() {
        families.single("process_open_fds", "gauge", "Open file descriptors.", count);
    }
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    if let Some(limit) = limit {
        families.single("process_max_fds", "gauge", "Maximum open file descriptors.", limit);
    }
}

/// Returns the number of open file descriptors.
#[cfg(target_os = "linux")]
fn open_files() -> Option<u64> {
    const DIRECTORY: &str = "/proc/self/fd";
    // Since Linux 6.2 it is the size of the directory. Counting the entries takes milliseconds for 10,000 connections.
    match std::fs::metadata(DIRECTORY).ok()?.len() {
        0 => std::fs::read_dir(DIRECTORY).ok().map(|entries| entries.count().saturating_sub(1) as u64),
        count => Some(count),
    }
}
