//! Errors of client requests, and the responses to which they are mapped.

use std::fmt;
use std::io;

use http::StatusCode;

use crate::http1;
use crate::httpserver::Response;
#[cfg(feature = "tls")]
use crate::tls::TlsError;

/// An error of a client request.
///
/// Converts into a response: 504 (Gateway Timeout) for [`ClientError::Timeout`], 503 (Service Unavailable) for
/// [`ClientError::Busy`], and 502 (Bad Gateway) for all others.
#[derive(Debug)]
#[non_exhaustive]
pub enum ClientError {
    /// The URL is malformed, or its scheme is neither http nor https.
    Url,
    /// The scheme of the URL is https, but TLS is not configured, see `Client::tls`.
    NoTls,
    /// The method or the target is invalid.
    Request(http1::Error),
    /// A header is invalid, or one that the client sets itself.
    Header,
    /// The request was not made on the thread of a running loop.
    NoLoop,
    /// The name could not be resolved, or the connection was refused. The message of the error begins with the host and
    /// port.
    Connect(io::Error),
    /// The TLS handshake or session failed: the upstream is not trusted, does not speak TLS or refuses the client.
    #[cfg(feature = "tls")]
    Tls(TlsError),
    /// The connection was not established in time, or the upstream sent nothing for too long.
    Timeout,
    /// The upstream closed the connection before the response was complete.
    Closed,
    /// The upstream sent something before the request was sent, and so probably speaks another protocol.
    Unexpected,
    /// The response is malformed.
    Response(http1::ResponseError),
    /// The response has a transfer coding other than chunked.
    Coding,
    /// The body of the response exceeds [`ClientLimits::body_bytes_max`](super::ClientLimits::body_bytes_max).
    TooLarge,
    /// All connections are in use, and as many requests as allowed wait for one.
    Busy,
    /// The content of the request could not be read to its end.
    Body(io::ErrorKind),
    /// The loop has ended, or its application accepts no sessions.
    Stopped,
}

impl ClientError {
    /// Returns the status of the response to this error.
    pub fn status(&self) -> StatusCode {
        match self {
            ClientError::Timeout => StatusCode::GATEWAY_TIMEOUT,
            ClientError::Busy => StatusCode::SERVICE_UNAVAILABLE,
            _ => StatusCode::BAD_GATEWAY,
        }
    }
}

impl fmt::Display for ClientError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ClientError::Url => formatter.write_str("invalid URL: expected http[s]://host[:port]/path"),
            ClientError::NoTls if cfg!(feature = "tls") => {
                formatter.write_str("https requires TLS; configure it with Client::tls")
            }
            ClientError::NoTls => formatter.write_str("https requires the feature tls of the crate serverd"),
            ClientError::Request(error) => write!(formatter, "invalid request: {error}"),
            ClientError::Header => formatter.write_str("invalid header, or one that the client sets itself"),
            ClientError::NoLoop => formatter.write_str("no loop is running on this thread"),
            ClientError::Connect(error) => write!(formatter, "cannot connect to {error}"),
            #[cfg(feature = "tls")]
            ClientError::Tls(error) => write!(formatter, "cannot connect to the upstream: {error}"),
            ClientError::Timeout => formatter.write_str("the upstream did not respond in time"),
            ClientError::Closed => {
                formatter.write_str("the upstream closed the connection before its response was complete")
            }
            ClientError::Unexpected => formatter.write_str("the upstream sent a message before any request"),
            ClientError::Response(error) => write!(formatter, "malformed response: {error}"),
            ClientError::Coding => formatter.write_str("unsupported transfer coding in the response"),
            ClientError::TooLarge => formatter.write_str("the body of the response is too large"),
            ClientError::Busy => formatter.write_str("too many requests to this upstream are in progress"),
            ClientError::Body(kind) => write!(formatter, "cannot read the content of the request: {kind}"),
            ClientError::Stopped => formatter.write_str("the loop has ended or accepts no outgoing connections"),
        }
    }
}

impl std::error::Error for ClientError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            ClientError::Request(error) => Some(error),
            ClientError::Connect(error) => Some(error),
            ClientError::Response(error) => Some(error),
            #[cfg(feature = "tls")]
            ClientError::Tls(error) => Some(error),
            _ => None,
        }
    }
}

impl From<ClientError> for Response {
    fn from(error: ClientError) -> Self {
        log::debug!("replied {}: {error}", error.status());
        Response::from(error.status())
    }
}
