//! select(2) on Unix: bitmaps that grow.
//!
//! The limit of 1,024 descriptors belongs to the `fd_set` type of the C library, not to the call: the kernel reads
//! as many words as the highest descriptor needs. So the sets here are vectors of words, and grow.
#![allow(unsafe_code, reason = "the call takes raw descriptors")]

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use rustix::event::{
    FdSetElement, FdSetIter, Timespec, fd_set_bound, fd_set_insert, fd_set_num_elements, fd_set_remove,
};

use crate::r#loop::readiness::{SystemSource, Token};

/// How many descriptors a word of a set holds.
const WORD_BITS: usize = size_of::<FdSetElement>() * 8;

/// The system's name for a source.
pub(super) fn raw(source: &SystemSource) -> RawFd {
    source.as_fd().as_raw_fd()
}

/// Descriptors are never negative.
#[inline]
fn index(fd: RawFd) -> usize {
    usize::try_from(fd).unwrap_or(0)
}

/// What is ready.
#[derive(Clone, Copy)]
pub(super) struct Ready {
    pub(super) readable: bool,
    pub(super) writable: bool,
    pub(super) hangup: bool,
}

/// A set of descriptors.
#[derive(Default)]
struct Set {
    words: Vec<FdSetElement>,
    /// The copy the call works on.
    ready: Vec<FdSetElement>,
    /// One more than the highest descriptor.
    bound: RawFd,
    members: usize,
}

impl Set {
    fn contains(&self, fd: RawFd) -> bool {
        let word = index(fd) / WORD_BITS;
        let bit = index(fd) % WORD_BITS;
        self.words.get(word..=word).is_some_and(|words| FdSetIter::new(words).any(|found| index(found) == bit))
    }

    fn put(&mut self, fd: RawFd, member: bool) {
        if self.contains(fd) == member {
            return;
        }
        if member {
            let words = index(fd) / WORD_BITS + 1;
            if self.words.len() < words {
                self.words.resize(words, FdSetElement::default());
            }
            fd_set_insert(&mut self.words, fd);
            self.members += 1;
            self.bound = self.bound.max(fd + 1);
        } else {
            fd_set_remove(&mut self.words, fd);
            self.members -= 1;
            if self.bound == fd + 1 {
                self.bound = fd_set_bound(&self.words);
            }
        }
    }

    /// Copies what lies below `bound`; `None` when nobody is in the set.
    fn prepare(&mut self, bound: RawFd) -> Option<&mut [FdSetElement]> {
        self.ready.clear();
        if self.members == 0 {
            return None;
        }
        let words = fd_set_num_elements(index(bound), bound);
        let have = words.min(self.words.len());
        self.ready.extend_from_slice(&self.words[..have]);
        self.ready.resize(words, FdSetElement::default());
        Some(&mut self.ready)
    }

    /// Shows up to `left` ready descriptors, from `first` on and then from the beginning.
    fn report(&self, first: RawFd, left: &mut usize, mut show: impl FnMut(RawFd)) {
        let words = self.ready.len();
        let split = (index(first) / WORD_BITS).min(words);
        let later = self.scan(split, words).skip_while(|&fd| fd < first);
        let sooner = self.scan(0, (split + 1).min(words)).take_while(|&fd| fd < first);
        for fd in later.chain(sooner) {
            if *left == 0 {
                return;
            }
            *left -= 1;
            show(fd);
        }
    }

    fn scan(&self, from: usize, to: usize) -> impl Iterator<Item = RawFd> {
        let offset = RawFd::try_from(from * WORD_BITS).unwrap_or(0);
        FdSetIter::new(&self.ready[from..to]).map(move |fd| fd + offset)
    }
}

/// The sets of a poller.
#[derive(Default)]
pub(super) struct Sets {
    read: Set,
    write: Set,
    /// Where the scan begins: behind who came first the last time, so that everybody does in turn.
    first: RawFd,
}

impl Sets {
    pub(super) fn set(&mut self, fd: RawFd, read: bool, write: bool) {
        self.read.put(fd, read);
        self.write.put(fd, write);
    }

    /// Waits, and shows what is ready.
    pub(super) fn select(&mut self, timeout: Option<Duration>, mut show: impl FnMut(RawFd, Ready)) -> io::Result<()> {
        let bound = self.read.bound.max(self.write.bound);
        let timeout =
            timeout.map(|limit| Timespec::try_from(limit).unwrap_or(Timespec { tv_sec: i32::MAX.into(), tv_nsec: 0 }));
        let (read, write) = (self.read.prepare(bound), self.write.prepare(bound));
        // SAFETY: every descriptor in the sets is borrowed from a source that the loop removes before it closes it
        // (the contract of `Readiness::remove`), or is the bell's own; both sets have the words that `bound` needs.
        let found = unsafe { rustix::event::select(bound, read, write, None, timeout.as_ref())? };
        let mut left = usize::try_from(found).unwrap_or(0);
        let mut leader = None;
        self.read.report(self.first, &mut left, |fd| {
            leader.get_or_insert(fd);
            show(fd, Ready { readable: true, writable: false, hangup: false });
        });
        self.write.report(self.first, &mut left, |fd| {
            leader.get_or_insert(fd);
            show(fd, Ready { readable: false, writable: true, hangup: false });
        });
        self.first = leader.map_or(self.first, |leader| leader + 1);
        Ok(())
    }
}

/// The token of each descriptor; [`Token::RESERVED`], which no source has, where nobody is watched.
#[derive(Default)]
pub(super) struct Tokens(Vec<Token>);

impl Tokens {
    #[inline]
    pub(super) fn get(&self, fd: RawFd) -> Option<Token> {
        self.0.get(index(fd)).copied().filter(|&token| token != Token::RESERVED)
    }

    /// Returns the token that stood there; then nothing changes.
    pub(super) fn insert(&mut self, fd: RawFd, token: Token) -> Option<Token> {
        let occupied = self.get(fd);
        if occupied.is_none() {
            let place = index(fd);
            if self.0.len() <= place {
                self.0.resize(place + 1, Token::RESERVED);
            }
            self.0[place] = token;
        }
        occupied
    }

    pub(super) fn remove(&mut self, fd: RawFd) -> Option<Token> {
        let token = self.get(fd)?;
        self.0[index(fd)] = Token::RESERVED;
        Some(token)
    }
}

/// One end of a pair of sockets: what is written at one end makes the other readable.
pub(in crate::r#loop) struct Bell(UnixStream);

impl Bell {
    /// The end that is watched, and the end that is rung.
    pub(in crate::r#loop) fn pair() -> io::Result<(Bell, Bell)> {
        let (near, far) = UnixStream::pair()?;
        near.set_nonblocking(true)?;
        far.set_nonblocking(true)?;
        Ok((Bell(near), Bell(far)))
    }

    pub(in crate::r#loop) fn source(&self) -> &SystemSource {
        &self.0
    }

    pub(in crate::r#loop) fn ring(&self) -> io::Result<()> {
        io::Write::write(&mut &self.0, &[1]).map(drop)
    }

    /// Takes everything that was written.
    pub(in crate::r#loop) fn silence(&self) {
        while matches!(io::Read::read(&mut &self.0, &mut [0; 64]), Ok(64)) {}
    }
}
