//! select on Windows: counted arrays that grow.
//!
//! Winsock's `fd_set` is a count and an array of sockets, and the limit of 64 belongs to the declared array, not to
//! the call, which goes by the count. So the sets here are vectors laid out as that structure, and grow.
#![allow(unsafe_code, reason = "Winsock has no safe face for select")]

use std::collections::HashMap;
use std::io;
use std::net::{Ipv4Addr, UdpSocket};
use std::os::windows::io::AsRawSocket;
use std::ptr;
use std::time::Duration;

use windows_sys::Win32::Networking::WinSock::{FD_SET, SOCKET, SOCKET_ERROR, TIMEVAL, WSAGetLastError, select};

use crate::r#loop::readiness::{SystemSource, Token};

/// The system's name for a source.
#[allow(clippy::cast_possible_truncation, reason = "a socket is as wide as a pointer")]
pub(super) fn raw(source: &SystemSource) -> SOCKET {
    source.as_socket().as_raw_socket() as SOCKET
}

/// What is ready.
#[derive(Clone, Copy)]
pub(super) struct Ready {
    pub(super) readable: bool,
    pub(super) writable: bool,
    pub(super) hangup: bool,
}

/// A set of sockets. The first element is the count: `fd_count` has 32 bits and the array is aligned to the size of a
/// socket, so on the little-endian machines Windows runs on, a count in a whole element reads the same.
struct Set {
    elements: Vec<usize>,
    places: HashMap<SOCKET, usize>,
    ready: Vec<usize>,
}

impl Default for Set {
    fn default() -> Self {
        Set { elements: vec![0], places: HashMap::new(), ready: vec![0] }
    }
}

impl Set {
    fn put(&mut self, socket: SOCKET, member: bool) {
        match (self.places.get(&socket).copied(), member) {
            (None, true) => {
                self.places.insert(socket, self.elements.len());
                self.elements.push(socket);
            }
            (Some(place), false) => {
                self.places.remove(&socket);
                self.elements.swap_remove(place);
                if let Some(&moved) = self.elements.get(place) {
                    self.places.insert(moved, place);
                }
            }
            _ => return,
        }
        self.elements[0] = self.elements.len() - 1;
    }

    /// Copies the set for the call; null when nobody is in it.
    fn prepare(&mut self) -> *mut FD_SET {
        self.ready.clear();
        self.ready.extend_from_slice(&self.elements);
        if self.elements[0] == 0 { ptr::null_mut() } else { self.ready.as_mut_ptr().cast() }
    }

    /// Shows the sockets the call left in the copy, beginning somewhere else each time.
    fn report(&self, first: usize, mut show: impl FnMut(SOCKET)) {
        let count = (self.ready[0] & 0xffff_ffff).min(self.ready.len() - 1);
        let ready = &self.ready[1..=count];
        let first = if count == 0 { 0 } else { first % count };
        for &socket in ready[first..].iter().chain(&ready[..first]) {
            show(socket);
        }
    }
}

/// The sets of a poller.
#[derive(Default)]
pub(super) struct Sets {
    read: Set,
    write: Set,
    /// A connect that fails is reported in the third set only; it has the members of the write set.
    except: Set,
    first: usize,
}

impl Sets {
    pub(super) fn set(&mut self, socket: SOCKET, read: bool, write: bool) {
        self.read.put(socket, read);
        self.write.put(socket, write);
        self.except.put(socket, write);
    }

    /// Waits, and shows what is ready.
    pub(super) fn select(&mut self, timeout: Option<Duration>, mut show: impl FnMut(SOCKET, Ready)) -> io::Result<()> {
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
        self.read.report(self.first, |socket| show(socket, Ready { readable: true, writable: false, hangup: false }));
        self.write.report(self.first, |socket| show(socket, Ready { readable: false, writable: true, hangup: false }));
        self.except.report(self.first, |socket| show(socket, Ready { readable: true, writable: true, hangup: true }));
        Ok(())
    }
}

/// Rounded up: a wait is never over early.
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

    /// Returns the token that stood there; then nothing changes.
    pub(super) fn insert(&mut self, socket: SOCKET, token: Token) -> Option<Token> {
        let before = self.get(socket);
        self.0.entry(socket).or_insert(token);
        before
    }

    pub(super) fn remove(&mut self, socket: SOCKET) -> Option<Token> {
        self.0.remove(&socket)
    }
}

/// A loopback socket that is connected to itself: what is sent makes it readable.
pub(in crate::r#loop) struct Bell(UdpSocket);

impl Bell {
    /// The end that is watched, and the end that is rung.
    pub(in crate::r#loop) fn pair() -> io::Result<(Bell, Bell)> {
        let near = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
        near.connect(near.local_addr()?)?;
        near.set_nonblocking(true)?;
        let far = near.try_clone()?;
        Ok((Bell(near), Bell(far)))
    }

    pub(in crate::r#loop) fn source(&self) -> &SystemSource {
        &self.0
    }

    pub(in crate::r#loop) fn ring(&self) -> io::Result<()> {
        self.0.send(&[1]).map(drop)
    }

    /// Takes everything that was sent.
    pub(in crate::r#loop) fn silence(&self) {
        while self.0.recv(&mut [0; 64]).is_ok() {}
    }
}
