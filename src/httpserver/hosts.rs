//! The hosts for which a server answers.

use std::net::IpAddr;

/// A list of hosts. A web page whose own name resolves to the address of the server (DNS rebinding) sends requests for
/// a host that is not in it.
#[derive(Clone, Debug)]
pub(crate) struct Hosts(Vec<String>);

impl Hosts {
    pub(crate) fn new<S: AsRef<str>>(hosts: impl IntoIterator<Item = S>) -> Self {
        Hosts(hosts.into_iter().map(|host| normalize(host.as_ref())).collect())
    }

    /// Returns whether the list covers the host of an authority.
    pub(crate) fn cover(&self, authority: &str) -> bool {
        let host = normalize(authority);
        self.0.iter().any(|listed| covers(listed, &host))
    }
}

/// Returns whether the host of an authority is an IP address or `localhost`, which no web page can use as its own name.
pub(crate) fn is_local_or_address(authority: &str) -> bool {
    let host = normalize(authority);
    let address = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(&host);
    host == "localhost" || address.parse::<IpAddr>().is_ok()
}

/// Returns whether an entry of the list covers a host. An entry that begins with a dot covers a domain and its
/// subdomains.
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
            assert_eq!(Hosts::new([listed]).cover(host), expected, "{listed} {host}");
        }
    }

    #[test]
    fn addresses_and_localhost_are_recognized() {
        for (authority, expected) in [
            ("127.0.0.1:9090", true),
            ("10.0.0.1", true),
            ("[::1]:9090", true),
            ("LocalHost", true),
            ("localhost.:80", true),
            ("localhost.evil.test", false),
            ("127.0.0.1.evil.test", false),
            ("evil.test:80", false),
            ("", false),
        ] {
            assert_eq!(is_local_or_address(authority), expected, "{authority}");
        }
    }
}
