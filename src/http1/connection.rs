//! The server side of one connection as a state machine: bytes in, events out; responses in, bytes out (see `respond`).
//!
//! ```text
//!            head complete, no body
//!            .------------------.
//!            v                  |
//!          Head ----------------'
//!            |  ^
//!       head |  | body
//!   complete v  | complete
//!           Body                     any error: Failed, permanently
//!                                    after the last response: Closed
//! ```

use super::body::{Body, Piece};
use super::error::{Error, Limits};
use super::head::{Framing, Head, Progress};

/// The result of parsing a piece of input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event<'a> {
    /// More input is needed. Call again with the unconsumed input followed by new bytes.
    NeedMore,
    /// A request head is complete. It consists of the last `len` bytes of the consumed input; `scratch` contains the
    /// parsed head.
    Head {
        /// The length of the head in bytes, including the empty line that ends it.
        len: usize,
    },
    /// A piece of the body, with the chunked coding removed.
    Body(&'a [u8]),
    /// The body is complete.
    End,
}

#[derive(Clone, Debug)]
enum State {
    /// Within or before a head. Holds the parser state of an incomplete one.
    Head(Option<Box<Head>>),
    /// The head was returned; its body has not been started.
    HeadDone(Framing),
    /// Like `HeadDone`, after `set_body_limit` has allowed a body of this length.
    AllowedLength(u64),
    /// Like `HeadDone`, after `set_body_limit` has allowed a chunked body of up to this size.
    AllowedChunks(u64),
    Body(Box<Body>),
    /// A body ended with a trailer section, which is kept until the next head is parsed.
    Ended(Box<[u8]>),
    Failed(Error),
    /// The last response was sent; further input is not parsed.
    Closed,
}

/// The server side of an HTTP/1.1 connection: parses requests, and applies the rules for responses.
#[derive(Clone, Debug)]
pub struct Connection {
    state: State,
}

impl Default for Connection {
    fn default() -> Self {
        Self::new()
    }
}

impl Connection {
    /// Creates the state of a new connection.
    pub fn new() -> Self {
        Connection { state: State::Head(None) }
    }

    /// Parses `input`, which must begin with the bytes the previous call did not consume. Returns the number of bytes
    /// consumed and an event.
    ///
    /// `scratch` receives the parsed head. All connections of a thread can share one; its content is valid from
    /// [`Event::Head`] to the next call.
    ///
    /// # Errors
    /// Returns an error if the peer violates the protocol or exceeds a limit. Every later call returns the same error.
    #[allow(clippy::inline_always, reason = "hot path")]
    #[inline(always)]
    pub fn receive<'a>(
        &mut self,
        scratch: &mut Head,
        limits: &Limits,
        input: &'a [u8],
    ) -> Result<(usize, Event<'a>), Error> {
        if let Some((end, _)) = self.parse_fast(scratch, limits, input) {
            return Ok((end, Event::Head { len: end }));
        }
        self.parse_general(scratch, limits, input)
    }

    /// Fast path: parses a complete head in its most common form at the start of `input`. Returns the end of the head
    /// and whether a body follows. Returns `None` in all other cases; then call [`Connection::parse_general`], which
    /// continues where this stopped.
    #[allow(clippy::inline_always, reason = "hot path")]
    #[inline(always)]
    pub(crate) fn parse_fast(&mut self, scratch: &mut Head, limits: &Limits, input: &[u8]) -> Option<(usize, bool)> {
        if !matches!(self.state, State::Head(None)) || input.is_empty() {
            return None;
        }
        scratch.reset();
        match scratch.parse_fast(input, limits) {
            Ok(Some(end)) => Some((end, self.after_head(scratch))),
            Ok(None) => None,
            Err(error) => {
                self.state = State::Failed(error);
                None
            }
        }
    }

    /// General case of [`Connection::receive`]: call it after [`Connection::parse_fast`] has returned `None`.
    ///
    /// # Errors
    /// Returns the same errors as [`Connection::receive`].
    #[inline(never)]
    pub(crate) fn parse_general<'a>(
        &mut self,
        scratch: &mut Head,
        limits: &Limits,
        input: &'a [u8],
    ) -> Result<(usize, Event<'a>), Error> {
        let outcome = match &mut self.state {
            State::Head(_) if input.is_empty() => return Ok((0, Event::NeedMore)),
            State::Head(_) | State::Ended(_) => self.receive_head(scratch, limits, input),
            State::HeadDone(framing) => {
                let framing = *framing;
                self.start_body(framing, limits.body_bytes_max).and_then(|()| self.receive_body(limits, input))
            }
            State::AllowedLength(length) => {
                let length = *length;
                self.start_body(Framing::Length(length), length).and_then(|()| self.receive_body(limits, input))
            }
            State::AllowedChunks(allowance) => {
                let allowance = *allowance;
                self.start_body(Framing::Chunked, allowance).and_then(|()| self.receive_body(limits, input))
            }
            State::Body(_) => self.receive_body(limits, input),
            State::Failed(error) => Err(*error),
            State::Closed => Ok((0, Event::NeedMore)),
        };
        if let Err(error) = outcome {
            self.state = State::Failed(error);
        }
        outcome
    }

    fn receive_head<'a>(
        &mut self,
        scratch: &mut Head,
        limits: &Limits,
        input: &'a [u8],
    ) -> Result<(usize, Event<'a>), Error> {
        match std::mem::replace(&mut self.state, State::Head(None)) {
            State::Head(Some(partial)) => *scratch = *partial,
            State::Head(None) => {}
            _ => scratch.reset(),
        }
        match scratch.parse(input, limits)? {
            Progress::NeedMore { skipped } => {
                if scratch.has_begun() || skipped > 0 {
                    self.state = State::Head(Some(Box::new(std::mem::take(scratch))));
                }
                Ok((skipped, Event::NeedMore))
            }
            Progress::Complete { start, end } => {
                self.after_head(scratch);
                Ok((end, Event::Head { len: end - start }))
            }
        }
    }

    /// Sets the state that follows a head. Returns whether a body follows.
    #[inline]
    fn after_head(&mut self, head: &Head) -> bool {
        let framing = head.framing();
        // Without a body the next head follows, and the state is already `Head(None)`.
        if framing != Framing::None {
            self.state = State::HeadDone(framing);
        }
        framing != Framing::None
    }

    /// Sets the maximum size of the body that follows the head just returned. Without this call
    /// [`Limits::body_bytes_max`] applies. Does nothing if no body follows.
    ///
    /// # Errors
    /// Returns [`Error::BodyTooLarge`] if the Content-Length is larger.
    pub fn set_body_limit(&mut self, bytes_max: u64) -> Result<(), Error> {
        let State::HeadDone(framing) = self.state else {
            return Ok(());
        };
        self.state = match framing {
            Framing::Length(length) if length > bytes_max => State::Failed(Error::BodyTooLarge),
            Framing::Length(length) => State::AllowedLength(length),
            _ => State::AllowedChunks(bytes_max),
        };
        if let State::Failed(error) = self.state { Err(error) } else { Ok(()) }
    }

    /// Marks the body as consumed: the caller found all of it in the input after the head and read it directly. Only
    /// for a body delimited by Content-Length.
    pub fn body_taken(&mut self) {
        self.state = State::Head(None);
    }

    fn start_body(&mut self, framing: Framing, allowance: u64) -> Result<(), Error> {
        self.state = State::Body(Box::new(Body::new(framing, allowance)?));
        Ok(())
    }

    fn receive_body<'a>(&mut self, limits: &Limits, input: &'a [u8]) -> Result<(usize, Event<'a>), Error> {
        let State::Body(body) = &mut self.state else {
            return Ok((0, Event::NeedMore));
        };
        let (used, piece) = body.decode(input, limits)?;
        let event = match piece {
            Piece::NeedMore => Event::NeedMore,
            Piece::Data(bytes) => Event::Body(bytes),
            Piece::End => {
                let trailers = body.take_trailers();
                self.state =
                    if trailers.is_empty() { State::Head(None) } else { State::Ended(trailers.into_boxed_slice()) };
                Event::End
            }
        };
        Ok((used, event))
    }

    /// Returns the trailer section of the body that just ended (RFC 9112 section 7.1.2), as complete, validated lines.
    /// Valid from [`Event::End`] to the next call to [`Connection::receive`].
    pub fn trailers(&self) -> &[u8] {
        if let State::Ended(lines) = &self.state { lines } else { &[] }
    }

    /// Rejects the current request for a reason other than its bytes, such as a timeout. Every later call of
    /// [`Connection::receive`] returns this error.
    pub fn fail(&mut self, error: Error) {
        self.state = State::Failed(error);
    }

    /// Ends the connection after its last response.
    pub(super) fn close(&mut self) {
        if !matches!(self.state, State::Failed(_)) {
            self.state = State::Closed;
        }
    }

    /// Returns whether input follows that cannot be parsed as a request: the rest of a body, or a rejected request.
    #[inline]
    pub(super) fn is_unread(&self) -> bool {
        matches!(self.state, State::Failed(_)) || self.is_within_body()
    }

    /// Returns whether part of a head has been received. Empty lines before it do not count.
    pub fn is_within_head(&self) -> bool {
        matches!(&self.state, State::Head(Some(head)) if head.has_begun())
    }

    /// Returns whether the method of an incomplete or rejected head is HEAD; see [`Head::is_head_method`].
    pub fn is_head_method(&self, scratch: &Head) -> bool {
        match &self.state {
            State::Head(Some(partial)) => partial.is_head_method(),
            _ => scratch.is_head_method(),
        }
    }

    /// Returns whether a head has been returned but its body has not ended yet.
    pub fn is_within_body(&self) -> bool {
        use State::{AllowedChunks, AllowedLength, Body, HeadDone};
        matches!(self.state, HeadDone(_) | AllowedLength(_) | AllowedChunks(_) | Body(_))
    }
}
