//! select on Windows, with growable socket arrays.
//!
//! Winsock's `fd_set` is a count followed by an array of sockets. The limit of 64 (`FD_SETSIZE`) is the length of the
//! declared array, not a limit of the call, which uses the count. The sets here are vectors with the layout of that
//! structure that grow on demand.
#![allow(unsafe_code, reason = "there is no safe wrapper for Winsock's select")]

use std::collections::HashMap;
use std::io;
use std::os::windows::io::AsRawSocket;
use std::ptr;
use std::time::Duration;

use windows_sys::Win32::Networking::WinSock::{FD_SET, SOCKET, SOCKET_ERROR, TIMEVAL, WSAGetLastError, select};

use crate::r#loop::readiness::{SystemSource, Token};

/// Returns the socket handle of a source.
#[allow(clippy::cast_possible_truncation, reason = "a socket is as wide as a pointer")]
pub(super) fn raw(source: &SystemSource) -> SOCKET {
    source.as_socket().as_raw_socket() as SOCKET
}

/// Readiness of one socket.
#[derive(Clone, Copy)]
pub(super) struct Ready {
    pub(super) readable: bool,
    pub(super) writable: bool,
    pub(super) hangup: bool,
}

/// A set of sockets. The first element is the count: `fd_count` has 32 bits and the array is aligned to the size of a
/// socket, so on the little-endian machines Windows runs on, a count stored in a whole element reads the same.
struct Set {
    elements: Vec<usize>,
    positions: HashMap<SOCKET, usize>,
    ready: Vec<usize>,
}

impl Default for Set {
    fn default() -> Self {
        Set { elements: vec![0], positions: HashMap::new(), ready: vec![0] }
    }
}

impl Set {
    fn set_member(&mut self, socket: SOCKET, member: bool) {
        match (self.positions.get(&socket).copied(), member) {
            (None, true) => {
                self.positions.insert(socket, self.elements.len());
                self.elements.push(socket);
            }
            (Some(position), false) => {
                self.positions.remove(&socket);
                self.elements.swap_remove(position);
                if let Some(&moved) = self.elements.get(position) {
                    self.positions.insert(moved, position);
                }
            }
            _ => return,
        }
        self.elements[0] = self.elements.len() - 1;
    }

    /// Copies the set for the call; returns null if it is empty.
    fn prepare(&mut self) -> *mut FD_SET {
        self.ready.clear();
        self.ready.extend_from_slice(&self.elements);
        if self.elements[0] == 0 { ptr::null_mut() } else { self.ready.as_mut_ptr().cast() }
    }

    /// Calls `on_ready` for the sockets that the call left in the copy, starting at the index `first` (modulo their
    /// number) and wrapping around.
    fn report(&self, first: usize, mut on_ready: impl FnMut(SOCKET)) {
        let count = (self.ready[0] & 0xffff_ffff).min(self.ready.len() - 1);
        let ready = &self.ready[1..=count];
        let first = if count == 0 { 0 } else { first % count };
        for &socket in ready[first..].iter().chain(&ready[..first]) {
            on_ready(socket);
        }
    }
}

/// The sets of the backend.
#[derive(Default)]
pub(super) struct Sets {
    read: Set,
    write: Set,
    /// Has the same members as the write set: Winsock reports a failed connect only here.
    except: Set,
    /// Index at which the scan starts; incremented by each call, for fairness.
    first: usize,
}

impl Sets {
    pub(super) fn set(&mut self, socket: SOCKET, read: bool, write: bool) {
        self.read.set_member(socket, read);
        self.write.set_member(socket, write);
        self.except.set_member(socket, write);
    }

    /// Waits, and calls `on_ready` for each ready socket and direction.
    pub(super) fn select(
        &mut self,
        timeout: Option<Duration>,
        mut on_ready: impl FnMut(SOCKET, Ready),
    ) -> io::Result<()> {
        let timeout = timeout.map(timeval);
        let timeout = timeout.as_ref().map_or(ptr::null(), ptr::from_ref);
        let (read, write, except) = (self.read.prepare(), self.write.prepare(), self.except.prepare());
        // SAFETY: each pointer is null or points to a vector laid out as an FD_SET whose array has as many sockets as
        // its count says; the call reads and shortens it in place. The vectors and the timeout outlive the call, and
        // the sockets in them are open: the loop removes a source before it closes it.
        let found = unsafe { select(0, read, write, except, timeout) };
        if found == SOCKET_ERROR {
            // SAFETY: no arguments; it reads a value of this thread.
            return Err(io::Error::from_raw_os_error(unsafe { WSAGetLastError() }));
        }
        if found == 0 {
            return Ok(());
        }
        self.first = self.first.wrapping_add(1);
        self.read
            .report(self.first, |socket| on_ready(socket, Ready { readable: true, writable: false, hangup: false }));
        self.write
            .report(self.first, |socket| on_ready(socket, Ready { readable: false, writable: true, hangup: false }));
        self.except
            .report(self.first, |socket| on_ready(socket, Ready { readable: true, writable: true, hangup: true }));
        Ok(())
    }
}

/// Converts a timeout, rounding up so that a wait never returns early.
fn timeval(limit: Duration) -> TIMEVAL {
    let micros = limit.as_nanos().div_ceil(1000);
    let seconds = i32::try_from(micros / 1_000_000).unwrap_or(i32::MAX);
    TIMEVAL { tv_sec: seconds, tv_usec: i32::try_from(micros % 1_000_000).unwrap_or(0) }
}

/// The token of each socket.
#[derive(Default)]
pub(super) struct Tokens(HashMap<SOCKET, Token>);

impl Tokens {
    pub(super) fn get(&self, socket: SOCKET) -> Option<Token> {
        self.0.get(&socket).copied()
    }

    /// Inserts a token unless the socket already has one; returns the existing token, if any.
    pub(super) fn insert(&mut self, socket: SOCKET, token: Token) -> Option<Token> {
        let existing = self.get(socket);
        self.0.entry(socket).or_insert(token);
        existing
    }

    pub(super) fn remove(&mut self, socket: SOCKET) -> Option<Token> {
        self.0.remove(&socket)
    }
}
