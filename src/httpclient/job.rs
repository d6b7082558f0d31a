//! A request that is queued or in flight: its encoded head, its content, and the receiver of its response.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};

use bytes::Bytes;
use http::StatusCode;

use super::error::ClientError;
use super::headers::valid_trailers;
use crate::http1::{ResponseReader, SendFraming};
use crate::httpserver::{BodyReader, Responder};

/// Maximum size of a piece of content in memory. Much unsent output would keep the loop from reading the response.
const PIECE_BYTES: usize = 64 * 1024;

/// A request to send.
pub(super) struct Job {
    /// The encoded head.
    pub(super) head: Vec<u8>,
    pub(super) content: Content,
    pub(super) framing: SendFraming,
    pub(super) is_head: bool,
    pub(super) is_idempotent: bool,
    /// The request was sent before, on a connection that has failed.
    pub(super) is_retry: bool,
    pub(super) sink: Sink,
}

/// The content of a request.
pub(super) enum Content {
    /// Bytes, and the number of those that were sent.
    Bytes(Bytes, usize),
    Reader(BodyReader),
}

impl Job {
    /// Returns whether the request may be sent again, although the upstream may have received it.
    pub(super) fn may_retry(&self) -> bool {
        !self.is_retry && self.is_idempotent && matches!(self.content, Content::Bytes(..))
    }

    /// Prepares the request to be sent again, on a new connection.
    pub(super) fn rewind(&mut self) {
        self.is_retry = true;
        if let Content::Bytes(bytes, sent) = &mut self.content {
            *sent = 0;
            self.framing = SendFraming::Length(bytes.len() as u64);
        }
    }
}

/// The callback for a response that is collected.
pub(super) type Callback = Box<dyn FnOnce(Result<ClientResponse, ClientError>) + Send>;

/// The receiver of a response. If it is dropped unused, it gets [`ClientError::Stopped`].
pub(super) struct Sink(Option<Receiver>);

/// The two ways to receive a response.
pub(super) enum Receiver {
    /// Complete, in memory.
    Collect(Callback),
    /// As a response of this server.
    Forward(Responder),
}

impl Sink {
    pub(super) fn new(receiver: Receiver) -> Self {
        Sink(Some(receiver))
    }

    /// Returns whether nothing receives the response any more.
    pub(super) fn is_closed(&self) -> bool {
        matches!(&self.0, Some(Receiver::Forward(responder)) if responder.is_closed())
    }

    /// Calls `call` once nothing receives the response any more.
    pub(super) fn on_closed(&self, call: impl FnOnce() + Send + 'static) {
        if let Some(Receiver::Forward(responder)) = &self.0 {
            responder.on_closed(call);
        }
    }

    /// Returns whether the response is forwarded as one of this server.
    pub(super) fn forwards(&self) -> bool {
        matches!(self.0, Some(Receiver::Forward(_)))
    }

    /// Takes the receiver if it forwards the response.
    pub(super) fn take_responder(&mut self) -> Option<Responder> {
        match self.0.take()? {
            Receiver::Forward(responder) => Some(responder),
            other @ Receiver::Collect(_) => {
                self.0 = Some(other);
                None
            }
        }
    }

    pub(super) fn take(&mut self) -> Option<Receiver> {
        self.0.take()
    }

    pub(super) fn fail(mut self, error: ClientError) {
        if let Some(receiver) = self.0.take() {
            receiver.fail(error);
        }
    }
}

impl Drop for Sink {
    fn drop(&mut self) {
        if let Some(receiver) = self.0.take() {
            receiver.fail(ClientError::Stopped);
        }
    }
}

impl Receiver {
    pub(super) fn fail(self, error: ClientError) {
        match self {
            Receiver::Collect(callback) => call(callback, Err(error)),
            Receiver::Forward(responder) => responder.respond(error),
        }
    }
}

/// Calls the callback of a response. A panic must not affect the connection or the pool.
pub(super) fn call(callback: Callback, result: Result<ClientResponse, ClientError>) {
    if catch_unwind(AssertUnwindSafe(|| callback(result))).is_err() {
        log::error!("the callback of a client request panicked");
    }
}

/// A step in reading content.
pub(super) enum Piece {
    Bytes(Bytes),
    /// The reader calls back when there is more.
    Wait,
    /// The trailer lines.
    End(Vec<u8>),
}

impl Content {
    /// Takes the next piece of the content.
    pub(super) fn next_piece(&mut self) -> io::Result<Piece> {
        match self {
            Content::Bytes(bytes, sent) if *sent < bytes.len() => {
                let end = bytes.len().min(*sent + PIECE_BYTES);
                let piece = bytes.slice(*sent..end);
                *sent = end;
                Ok(Piece::Bytes(piece))
            }
            Content::Bytes(..) => Ok(Piece::End(Vec::new())),
            Content::Reader(reader) => match reader.try_next_piece() {
                Ok(Some(piece)) => Ok(Piece::Bytes(piece)),
                Ok(None) => {
                    let trailers = reader.trailers().unwrap_or_default();
                    Ok(Piece::End(valid_trailers(trailers.lines()).lines().to_vec()))
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(Piece::Wait),
                Err(error) => Err(error),
            },
        }
    }
}

/// A response that was received completely.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ClientResponse {
    /// The status code.
    pub status: StatusCode,
    /// The body, without transfer coding.
    pub body: Bytes,
    /// The head, with the status line.
    head: Vec<u8>,
}

impl ClientResponse {
    pub(super) fn new(status: StatusCode, head: Vec<u8>, body: Bytes) -> Self {
        ClientResponse { status, body, head }
    }

    /// Returns the names and values of all headers in order.
    pub fn headers(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        ResponseReader::headers(&self.head)
    }

    /// Returns the value of the first header called `name` (case-insensitive).
    pub fn header(&self, name: &str) -> Option<&[u8]> {
        self.headers().find(|(key, _)| key.eq_ignore_ascii_case(name.as_bytes())).map(|(_, value)| value)
    }
}
