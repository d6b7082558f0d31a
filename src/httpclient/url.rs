//! Upstreams and URLs.

use std::str::FromStr;
use std::sync::Arc;

use http::uri::{Scheme, Uri};

use super::error::ClientError;

/// What identifies an upstream in the pool.
#[derive(Debug, PartialEq, Eq, Hash)]
pub(super) struct Key {
    /// The scheme is https.
    pub(super) is_secure: bool,
    /// The host in lower case, without brackets.
    pub(super) host: String,
    pub(super) port: u16,
}

/// A server that [`Client::forward`](super::Client::forward) forwards requests to: `http[s]://host[:port]`, parsed once
/// rather than for each request.
///
/// Clones share their memory.
///
/// # Examples
/// ```
/// use serverd::{ClientError, Upstream};
///
/// let upstream: Upstream = "http://127.0.0.1:9000".parse()?;
/// assert!("http://127.0.0.1:9000/path".parse::<Upstream>().is_err());
/// # drop(upstream);
/// # Ok::<(), ClientError>(())
/// ```
#[derive(Clone, Debug)]
pub struct Upstream {
    pub(super) key: Arc<Key>,
    /// The host and port as written.
    pub(super) authority: Arc<str>,
}

impl FromStr for Upstream {
    type Err = ClientError;

    /// Parses the URL of an upstream.
    ///
    /// # Errors
    /// Returns [`ClientError::Url`] if the URL is malformed, has a path, a query or user information, or if its scheme is
    /// neither http nor https.
    fn from_str(url: &str) -> Result<Self, ClientError> {
        let (key, target, authority) = parse_url(url)?;
        if target != "/" {
            return Err(ClientError::Url);
        }
        Ok(Upstream { key: Arc::new(key), authority: authority.into() })
    }
}

/// Parses a URL into the upstream, the target and the value of Host.
pub(super) fn parse_url(url: &str) -> Result<(Key, String, String), ClientError> {
    let uri: Uri = url.parse().map_err(|_| ClientError::Url)?;
    let authority = uri.authority().ok_or(ClientError::Url)?;
    let is_secure = uri.scheme() == Some(&Scheme::HTTPS);
    // RFC 9110 section 4.2.4: user information in an http URI is an error.
    if !(is_secure || uri.scheme() == Some(&Scheme::HTTP))
        || authority.as_str().contains('@')
        || authority.host().is_empty()
    {
        return Err(ClientError::Url);
    }
    let host = authority.host().trim_start_matches('[').trim_end_matches(']').to_ascii_lowercase();
    let has_port = authority.as_str().len() > authority.host().len() + 1;
    let port = authority.port_u16();
    if has_port != port.is_some() {
        return Err(ClientError::Url);
    }
    let target = uri.path_and_query().map_or("/", |target| target.as_str());
    let target = if target.starts_with('/') { target.to_owned() } else { format!("/{target}") };
    let port = port.unwrap_or(if is_secure { 443 } else { 80 });
    Ok((Key { is_secure, host, port }, target, authority.as_str().to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_split_into_upstream_target_and_host() {
        for (url, host, port, target, authority) in [
            ("http://a.test", "a.test", 80, "/", "a.test"),
            ("http://A.test:81/b?c#d", "a.test", 81, "/b?c", "A.test:81"),
            ("http://[::1]:8080?q", "::1", 8080, "/?q", "[::1]:8080"),
            ("https://a.test", "a.test", 443, "/", "a.test"),
            ("HTTPS://a.test:80/", "a.test", 80, "/", "a.test:80"),
        ] {
            let (key, found, value) = parse_url(url).unwrap();
            assert_eq!(key.is_secure, url.to_ascii_lowercase().starts_with("https"));
            assert_eq!((key.host.as_str(), key.port, found.as_str(), value.as_str()), (host, port, target, authority));
        }
        for url in
            ["", "/a", "a.test", "ftp://a.test/", "http://", "http://u@a.test/", "http://a.test:99999/", "http://a b/"]
        {
            assert!(matches!(parse_url(url), Err(ClientError::Url)), "{url}");
        }
    }

    #[test]
    fn an_upstream_has_no_path() {
        for url in ["http://a.test", "HTTPS://A.test:81/", "http://[::1]:8080"] {
            let upstream: Upstream = url.parse().unwrap();
            let (key, _, authority) = parse_url(url).unwrap();
            assert_eq!((&*upstream.key, &*upstream.authority), (&key, authority.as_str()));
        }
        for url in ["http://a.test/b", "http://a.test/?b", "http://a.test?b", "a.test", "http://u@a.test"] {
            assert!(matches!(url.parse::<Upstream>(), Err(ClientError::Url)), "{url}");
        }
    }
}
