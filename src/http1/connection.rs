//! The automaton of one connection: bytes in, events out.
//!
//! ```text
//!             head whole, no body
//!            .------------------.
//!            v                  |
//!          Head ----------------'
//!            |  ^
//!  head whole|  | body whole
//!            v  |
//!           Body                     any fault: Failed, for ever
//! ```

use super::Limits;
use super::body::{Body, Piece};
use super::error::Error;
use super::head::{Framing, Head, Progress};

/// What a stretch of input was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event<'a> {
    /// The input ends within a message, or between two. Call again with what is left of it and more.
    NeedMore,
    /// The head of a request is whole: it is the last `len` of the octets used, and `scratch` describes it.
    Head {
        /// The length of the head, with its last line end.
        len: usize,
    },
    /// A stretch of the body, decoded.
    Body(&'a [u8]),
    /// The body is whole.
    End,
}

#[derive(Clone, Debug)]
enum State {
    /// In a head or before it. What was read of an unfinished one is kept here.
    Head(Option<Box<Head>>),
    /// The head was shown; its body was not begun.
    Between(Framing),
    /// The same, and a body of this length is allowed.
    AllowedLength(u64),
    /// The same, and chunks of so many octets in all are allowed.
    AllowedChunks(u64),
    Body(Box<Body>),
    /// A body ended with a trailer section, which is kept until the next head.
    Ended(Box<[u8]>),
    Failed(Error),
}

/// One connection's side of HTTP/1.1.
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
    /// A connection before its first request.
    pub fn new() -> Self {
        Connection { state: State::Head(None) }
    }

    /// Reads on in `input`, which begins with what was not used before. Returns how much of it is done with, and
    /// what it was. `scratch` is where heads are described; one serves all the connections of a thread, and it is
    /// valid from [`Event::Head`] to the next call.
    ///
    /// # Errors
    /// The peer's fault. From then on every call returns the same.
    #[allow(clippy::inline_always, reason = "on the way of every request")]
    #[inline(always)]
    pub fn receive<'a>(
        &mut self,
        scratch: &mut Head,
        limits: &Limits,
        input: &'a [u8],
    ) -> Result<(usize, Event<'a>), Error> {
        if let Some((end, _)) = self.receive_plain(scratch, limits, input) {
            return Ok((end, Event::Head { len: end }));
        }
        self.receive_other(scratch, limits, input)
    }

    /// A plain head that stands whole at the front, as most do: where it ends, and whether a body follows. Of any other
    /// [`Connection::receive_other`] tells, and does not read again what was read here.
    #[allow(clippy::inline_always, reason = "on the way of every request")]
    #[inline(always)]
    pub(crate) fn receive_plain(&mut self, scratch: &mut Head, limits: &Limits, input: &[u8]) -> Option<(usize, bool)> {
        if !matches!(self.state, State::Head(None)) || input.is_empty() {
            return None;
        }
        scratch.reset();
        match scratch.read_plain_lines(input, limits) {
            Ok(Some(end)) => Some((end, self.after_head(scratch))),
            Ok(None) => None,
            Err(error) => {
                self.state = State::Failed(error);
                None
            }
        }
    }

    /// As [`Connection::receive`], after [`Connection::receive_plain`].
    ///
    /// # Errors
    /// As [`Connection::receive`].
    #[inline(never)]
    pub(crate) fn receive_other<'a>(
        &mut self,
        scratch: &mut Head,
        limits: &Limits,
        input: &'a [u8],
    ) -> Result<(usize, Event<'a>), Error> {
        let outcome = match &mut self.state {
            State::Head(_) if input.is_empty() => return Ok((0, Event::NeedMore)),
            State::Head(_) | State::Ended(_) => self.receive_head(scratch, limits, input),
            State::Between(framing) => {
                let framing = *framing;
                self.begin_body(framing, limits.body_bytes_max).and_then(|()| self.receive_body(limits, input))
            }
            State::AllowedLength(length) => {
                let length = *length;
                self.begin_body(Framing::Length(length), length).and_then(|()| self.receive_body(limits, input))
            }
            State::AllowedChunks(allowance) => {
                let allowance = *allowance;
                self.begin_body(Framing::Chunked, allowance).and_then(|()| self.receive_body(limits, input))
            }
            State::Body(_) => self.receive_body(limits, input),
            State::Failed(error) => Err(*error),
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
            Progress::More { skipped } => {
                if scratch.has_begun() || skipped > 0 {
                    self.state = State::Head(Some(Box::new(std::mem::take(scratch))));
                }
                Ok((skipped, Event::NeedMore))
            }
            Progress::Whole { start, end } => {
                self.after_head(scratch);
                Ok((end, Event::Head { len: end - start }))
            }
        }
    }

    /// Whether a body follows.
    #[inline]
    fn after_head(&mut self, head: &Head) -> bool {
        let framing = head.framing();
        // Without a body the next head follows, which is the state already.
        if framing != Framing::None {
            self.state = State::Between(framing);
        }
        framing != Framing::None
    }

    /// After a head whose framing is not [`Framing::None`]: how large the body may be. Without this call
    /// [`Limits::body_bytes_max`] applies.
    ///
    /// # Errors
    /// [`Error::BodyTooLarge`] when the announced length is larger.
    pub fn allow_body(&mut self, bytes_max: u64) -> Result<(), Error> {
        let State::Between(framing) = self.state else {
            return Ok(());
        };
        self.state = match framing {
            Framing::Length(length) if length > bytes_max => State::Failed(Error::BodyTooLarge),
            Framing::Length(length) => State::AllowedLength(length),
            _ => State::AllowedChunks(bytes_max),
        };
        if let State::Failed(error) = self.state { Err(error) } else { Ok(()) }
    }

    /// After a head whose body has a length and stands whole in the input: it was used as it is.
    pub fn skip_body(&mut self) {
        self.state = State::Head(None);
    }

    fn begin_body(&mut self, framing: Framing, allowance: u64) -> Result<(), Error> {
        self.state = State::Body(Box::new(Body::new(framing, allowance)?));
        Ok(())
    }

    fn receive_body<'a>(&mut self, limits: &Limits, input: &'a [u8]) -> Result<(usize, Event<'a>), Error> {
        let State::Body(body) = &mut self.state else {
            return Ok((0, Event::NeedMore));
        };
        let (used, piece) = body.decode(input, limits)?;
        let event = match piece {
            Piece::More => Event::NeedMore,
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

    /// After [`Event::End`] and before the next call of [`Connection::receive`]: the trailer section of the body, whole
    /// lines that were checked (RFC 9112 section 7.1.2).
    pub fn trailers(&self) -> &[u8] {
        if let State::Ended(lines) = &self.state { lines } else { &[] }
    }

    /// Within a head, of which some octets came (empty lines before it aside).
    pub fn is_within_head(&self) -> bool {
        matches!(&self.state, State::Head(Some(head)) if head.has_begun())
    }

    /// Whether the head that is being read, or was found at fault, has the method HEAD: see [`Head::is_for_head`].
    pub fn is_for_head(&self, scratch: &Head) -> bool {
        match &self.state {
            State::Head(Some(partial)) => partial.is_for_head(),
            _ => scratch.is_for_head(),
        }
    }

    /// Between a head and the end of its body.
    pub fn is_within_body(&self) -> bool {
        use State::{AllowedChunks, AllowedLength, Between, Body};
        matches!(self.state, Between(_) | AllowedLength(_) | AllowedChunks(_) | Body(_))
    }
}
