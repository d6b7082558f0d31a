//! The limits of a client.

use std::time::Duration;

use crate::http1::Limits;

/// The limits of a [`Client`](super::Client), for all loops that use it together.
///
/// # Examples
/// ```
/// use serverd::{Client, ClientLimits};
/// use std::time::Duration;
///
/// let limits = ClientLimits::default().upstream_connections_max(64).response_timeout(Duration::from_secs(5));
/// let client = Client::with_limits(limits);
/// # drop(client);
/// ```
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ClientLimits {
    /// Maximum time to resolve the name of an upstream and to connect to it. Default: 10 s.
    pub connect_timeout: Duration,
    /// Maximum time in which neither the request is taken nor the response continues. Time in which the response waits for
    /// a slow client does not count. Default: 60 s.
    pub response_timeout: Duration,
    /// Time after which an unused connection is closed, if the loop's idle timeout is not shorter. Default: 30 s.
    pub idle_timeout: Duration,
    /// Maximum connections to one upstream. Default: 256.
    pub upstream_connections_max: usize,
    /// Maximum connections to all upstreams. Default: 1,024.
    pub connections_max: usize,
    /// Maximum unused connections that are kept to one upstream. Default: 64.
    pub idle_connections_max: usize,
    /// Maximum requests that wait for a connection to one upstream, for up to the connect timeout. Further ones fail with
    /// [`ClientError::Busy`](super::ClientError::Busy). Default: 1,024.
    pub queue_max: usize,
    /// Maximum size of a response body that is collected in memory, in bytes. A response that is forwarded has no limit.
    /// Default: 1 MiB.
    pub body_bytes_max: usize,
    /// Limits on the head and the trailers of a response.
    pub head: Limits,
}

impl ClientLimits {
    setters! {
        connect_timeout: Duration,
        response_timeout: Duration,
        idle_timeout: Duration,
        upstream_connections_max: usize,
        connections_max: usize,
        idle_connections_max: usize,
        queue_max: usize,
        body_bytes_max: usize,
        head: Limits,
    }
}

impl Default for ClientLimits {
    fn default() -> Self {
        ClientLimits {
            connect_timeout: Duration::from_secs(10),
            response_timeout: Duration::from_secs(60),
            idle_timeout: Duration::from_secs(30),
            upstream_connections_max: 256,
            connections_max: 1024,
            idle_connections_max: 64,
            queue_max: 1024,
            body_bytes_max: 1024 * 1024,
            head: Limits::default(),
        }
    }
}
