//! TLS of a connection to an upstream: a session around the session of HTTP, which decrypts input and encrypts output.
//!
//! It works on every loop, since nothing of it is in the stream. Ciphertext is decrypted in pieces, and only while the
//! session of HTTP takes the plaintext, so that little more than a record is kept for one that is paused. Output is taken
//! from its source while little ciphertext is unsent.

use std::time::{Duration, Instant};

use super::error::ClientError;
use crate::httpserver::{Session, SessionWaker, Wakeup};
use crate::r#loop::{CloseInfo, Flow, Output, Phase, Timer, Wire};
use crate::tls::{ClientSession, ClientTls, TlsError, closed_in_handshake};

/// Maximum ciphertext that is decrypted at once: a record.
const PIECE_BYTES: usize = 16 * 1024;

/// What the session of HTTP cannot learn from its wire, which has only plaintext.
pub(super) struct TlsState {
    /// Unsent output besides that of the wire.
    pub(super) unsent_ciphertext: usize,
    /// Ciphertext has arrived that is not decrypted yet.
    pub(super) has_more_input: bool,
    /// The input has ended without the end of the TLS session, so that its end may be missing.
    pub(super) is_truncated: bool,
}

/// The session of HTTP on a connection with TLS.
pub(super) trait Inner: Session {
    /// Sets the state of the connection before each call of another method.
    fn set_tls_state(&mut self, state: TlsState);

    /// Fails the current request, or the one for which the connection was opened. Returns how to proceed.
    fn fail(&mut self, error: ClientError) -> Flow;
}

/// The session of a connection with TLS.
pub(super) struct Secure<I> {
    upstream: Box<I>,
    host: String,
    tls: ClientTls,
    /// `None` before the connection is established.
    session: Option<Box<ClientSession>>,
    /// Until when the handshake must be complete, and the timer that wakes the session then; `None` after the handshake.
    deadline: Option<(Instant, Option<Timer>)>,
    /// Plaintext that the session of HTTP has not taken.
    plaintext: Vec<u8>,
    /// The upstream has ended its output in an orderly way.
    has_ended: bool,
    /// The connection has ended before that.
    is_truncated: bool,
}

impl<I: Inner> Secure<I> {
    /// Creates the session of a connection to a host. The handshake must be complete within `limit` from now on.
    pub(super) fn new(upstream: I, host: &str, tls: &ClientTls, limit: Duration) -> Self {
        Secure {
            upstream: Box::new(upstream),
            host: host.to_owned(),
            tls: tls.clone(),
            session: None,
            deadline: Some((Instant::now() + limit, None)),
            plaintext: Vec::new(),
            has_ended: false,
            is_truncated: false,
        }
    }

    /// Begins the handshake on a connection that is established, unless it has begun.
    fn begin(&mut self, wire: &mut Wire<'_, Wakeup>) -> Result<(), TlsError> {
        if self.session.is_none() {
            self.session = Some(Box::new(ClientSession::new(&self.tls, &self.host)?));
            self.send(Output::new(), wire);
        }
        Ok(())
    }

    /// Encrypts output. Returns how to proceed if that fails.
    fn send(&mut self, mut output: Output, wire: &mut Wire<'_, Wakeup>) -> Option<Flow> {
        let pieces = output.take_bytes();
        let session = self.session.as_mut()?;
        let outcome = session.encrypt(pieces.iter().map(|piece| &piece[..]), wire.output().buffer());
        outcome.err().map(|error| self.upstream.fail(ClientError::Tls(error)))
    }

    /// Fails the current request. An alert for the upstream may have to be sent.
    #[cold]
    fn fail(&mut self, error: TlsError, wire: &mut Wire<'_, Wakeup>) -> Flow {
        let flow = self.upstream.fail(ClientError::Tls(error));
        if self.deadline.is_none() {
            return flow;
        }
        self.send(Output::new(), wire);
        Flow::Close
    }

    /// Calls a method of the session of HTTP with the plaintext, and encrypts its output.
    fn call(
        &mut self,
        wire: &mut Wire<'_, Wakeup>,
        method: impl FnOnce(&mut I, &mut Wire<'_, Wakeup>) -> Flow,
    ) -> Flow {
        let (upstream, mut output) = (&mut *self.upstream, Output::new());
        let (unsent_ciphertext, has_more_input) = (wire.output().len(), !wire.input().is_empty());
        upstream.set_tls_state(TlsState { unsent_ciphertext, has_more_input, is_truncated: self.is_truncated });
        let streams = (&self.plaintext[..], self.has_ended || self.is_truncated);
        let (flow, consumed) = wire.with_streams(streams, &mut output, |wire| method(upstream, wire));
        if consumed == self.plaintext.len() {
            self.plaintext = Vec::new();
        } else {
            self.plaintext.drain(..consumed);
        }
        if flow == Flow::Abort {
            return flow;
        }
        if let Some(failed) = self.send(output, wire) {
            return failed;
        }
        if flow == Flow::Close
            && let Some(session) = &mut self.session
        {
            session.end();
            self.send(Output::new(), wire);
        }
        flow
    }

    /// Calls a method without input, once the handshake is complete.
    fn call_if_open(
        &mut self,
        wire: &mut Wire<'_, Wakeup>,
        method: impl FnOnce(&mut I, &mut Wire<'_, Wakeup>) -> Flow,
    ) -> Flow {
        if self.deadline.is_some() { Flow::Unchanged } else { self.call(wire, method) }
    }

    fn end_deadline(&mut self) {
        if let Some((_, Some(timer))) = self.deadline.take() {
            timer.cancel();
        }
    }

    /// Handles input of the handshake. Returns how to proceed unless it is complete.
    fn continue_handshake(&mut self, wire: &mut Wire<'_, Wakeup>) -> Option<Flow> {
        if self.session.as_ref().is_some_and(|session| session.is_handshaking()) {
            if let Some(failed) = self.send(Output::new(), wire) {
                return Some(failed);
            }
            if !wire.input().is_empty() {
                return None;
            }
            if wire.ended() {
                return Some(self.fail(closed_in_handshake(), wire));
            }
            return Some(Flow::Read(Phase::Unlimited));
        }
        self.end_deadline();
        // Sends the request.
        let flow = self.call(wire, Session::message);
        (!matches!(flow, Flow::Read(_))).then_some(flow)
    }

    /// Decrypts the next piece of ciphertext.
    fn decrypt(&mut self, wire: &mut Wire<'_, Wakeup>) -> Result<(), TlsError> {
        let Some(session) = &mut self.session else { return Ok(()) };
        let input = wire.input();
        let piece = &input[..input.len().min(PIECE_BYTES)];
        wire.consume(piece.len());
        self.has_ended = session.decrypt(piece, &mut self.plaintext)?;
        if self.has_ended {
            // Nothing after the end is of any use.
            wire.consume(wire.input().len());
        }
        Ok(())
    }
}

impl<I: Inner> Session for Secure<I> {
    fn open(&mut self, waker: SessionWaker) {
        if let Some((until, timer)) = &mut self.deadline {
            let limit = until.saturating_duration_since(Instant::now());
            let woken = waker.clone();
            *timer = Some(waker.handle().call_later(limit, move || woken.wake()));
        }
        self.upstream.open(waker);
    }

    fn receive(&mut self, wire: &mut Wire<'_, Wakeup>) -> Flow {
        loop {
            if let Err(error) = self.begin(wire).and_then(|()| self.decrypt(wire)) {
                return self.fail(error, wire);
            }
            if self.deadline.is_some() {
                match self.continue_handshake(wire) {
                    Some(flow) => return flow,
                    None if self.deadline.is_some() => continue,
                    None => {}
                }
            }
            self.is_truncated = wire.ended() && wire.input().is_empty() && !self.has_ended;
            let flow = self.call(wire, Session::receive);
            if !matches!(flow, Flow::Read(_)) || wire.input().is_empty() {
                return flow;
            }
        }
    }

    fn message(&mut self, wire: &mut Wire<'_, Wakeup>) -> Flow {
        match &self.deadline {
            None => self.call(wire, Session::message),
            Some((until, _)) if Instant::now() >= *until => self.upstream.fail(ClientError::Timeout),
            Some(_) => self.begin(wire).map_or_else(|error| self.fail(error, wire), |()| Flow::Unchanged),
        }
    }

    fn output_drained(&mut self, wire: &mut Wire<'_, Wakeup>) -> Flow {
        self.call_if_open(wire, Session::output_drained)
    }

    fn timer(&mut self, phase: Phase, wire: &mut Wire<'_, Wakeup>) -> Flow {
        self.call(wire, |upstream, wire| upstream.timer(phase, wire))
    }

    fn drain(&mut self, wire: &mut Wire<'_, Wakeup>) -> Flow {
        self.call_if_open(wire, Session::drain)
    }

    fn closed(mut self: Box<Self>, info: CloseInfo) {
        self.end_deadline();
        self.upstream.closed(info);
    }
}
