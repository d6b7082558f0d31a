//! Options of a server that are off by default: the Keep-Alive header, a limit on the requests of a connection, and a list
//! of hosts. They cost nothing on the fast path while all are off.

use std::time::Duration;

use http::StatusCode;

use super::request::RequestHead;
use super::response::Response;

/// The options that are on.
#[derive(Clone, Debug)]
pub(super) struct Options {
    /// The value of the Keep-Alive header; empty for none.
    pub(super) keep_alive: Vec<u8>,
    /// Number of requests after which a connection closes.
    pub(super) requests_max: u32,
    /// The hosts the server answers for; empty for all.
    hosts: Vec<String>,
}

impl Default for Options {
    fn default() -> Self {
        Options { keep_alive: Vec::new(), requests_max: u32::MAX, hosts: Vec::new() }
    }
}

impl Options {
    pub(super) fn set_keep_alive(&mut self, timeout: Duration) {
        if timeout.as_secs() > 0 {
            self.keep_alive = format!("timeout={}", timeout.as_secs()).into_bytes();
        }
    }

    pub(super) fn set_hosts<S: AsRef<str>>(&mut self, hosts: impl IntoIterator<Item = S>) {
        self.hosts = hosts.into_iter().map(|host| normalize(host.as_ref())).collect();
    }

    /// Returns a 421 (Misdirected Request) if the request is for a host that is not listed.
    pub(super) fn refuse_host(&self, head: &RequestHead<'_>) -> Option<Response> {
        let is_listed = |host: &str| self.hosts.iter().any(|listed| covers(listed, host));
        if self.hosts.is_empty() || head.host().is_some_and(|authority| is_listed(&normalize(authority))) {
            return None;
        }
        Some(Response::error(StatusCode::MISDIRECTED_REQUEST, "this server does not serve the requested host\n"))
    }
}

/// Returns whether an entry of the list covers a host. An entry that begins with a dot covers a domain and its subdomains.
fn covers(listed: &str, host: &str) -> bool {
    match listed.strip_prefix('.') {
        Some(domain) => host == domain || host.ends_with(listed),
        None => host == listed,
    }
}

/// Returns the host of an authority in lower case, without its port and without a final dot. An IPv6 address is in
/// brackets.
fn normalize(authority: &str) -> String {
    let is_bare_ipv6 = authority.matches(':').count() > 1 && !authority.starts_with('[');
    let host = match authority.find(']') {
        _ if is_bare_ipv6 => return format!("[{}]", authority.to_ascii_lowercase()),
        Some(end) => &authority[..=end],
        None => authority.split(':').next().unwrap_or_default(),
    };
    let host = host.strip_suffix('.').filter(|name| !name.is_empty()).unwrap_or(host);
    host.to_ascii_lowercase()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_compared_without_port_and_case() {
        for (listed, host, expected) in [
            ("example.com", "Example.COM:8080", true),
            ("Example.com:1", "example.com.", true),
            ("example.com", "a.example.com", false),
            ("example.com", "example.com.evil.test", false),
            (".example.com", "a.b.Example.com", true),
            (".example.com", "example.com", true),
            (".example.com", "badexample.com", false),
            ("127.0.0.1", "127.0.0.1:80", true),
            ("::1", "[::1]:80", true),
            ("[::1]", "[::1]", true),
            ("localhost", "", false),
        ] {
            assert_eq!(covers(&normalize(listed), &normalize(host)), expected, "{listed} {host}");
        }
    }
}
