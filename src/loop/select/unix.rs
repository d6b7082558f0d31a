//! select(2) on Unix, with growable bitmaps.
//!
//! The limit of 1,024 descriptors (`FD_SETSIZE`) is a limit of the C library's `fd_set` type, not of the system call:
//! the kernel reads as many words as the highest descriptor requires. The sets here are vectors of words that grow on
//! demand.
#![allow(unsafe_code, reason = "the call takes raw descriptors")]

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::time::Duration;

use rustix::event::{
    FdSetElement, FdSetIter, Timespec, fd_set_bound, fd_set_insert, fd_set_num_elements, fd_set_remove,
};

use crate::r#loop::readiness::{SystemSource, Token};

/// Number of descriptors in a word of a set.
const WORD_BITS: usize = size_of::<FdSetElement>() * 8;

/// Returns the file descriptor of a source.
pub(super) fn raw(source: &SystemSource) -> RawFd {
    source.as_fd().as_raw_fd()
}

/// Converts a descriptor to an index; descriptors are never negative.
#[inline]
fn index(fd: RawFd) -> usize {
    usize::try_from(fd).unwrap_or(0)
}

/// Readiness of one descriptor.
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
    /// The copy passed to the call, which leaves the ready descriptors in it.
    ready: Vec<FdSetElement>,
    /// The highest descriptor plus one.
    bound: RawFd,
    members: usize,
}

impl Set {
    fn contains(&self, fd: RawFd) -> bool {
        let word = index(fd) / WORD_BITS;
        let bit = index(fd) % WORD_BITS;
        self.words.get(word..=word).is_some_and(|words| FdSetIter::new(words).any(|found| index(found) == bit))
    }

    fn set_member(&mut self, fd: RawFd, member: bool) {
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

    /// Copies the words below `bound` for the call; returns `None` if the set is empty.
    fn prepare(&mut self, bound: RawFd) -> Option<&mut [FdSetElement]> {
        self.ready.clear();
        if self.members == 0 {
            return None;
        }
        let words = fd_set_num_elements(index(bound), bound);
        let copied = words.min(self.words.len());
        self.ready.extend_from_slice(&self.words[..copied]);
        self.ready.resize(words, FdSetElement::default());
        Some(&mut self.ready)
    }

    /// Calls `on_ready` for up to `left` ready descriptors, starting at `first` and wrapping around.
    fn report(&self, first: RawFd, left: &mut usize, mut on_ready: impl FnMut(RawFd)) {
        let words = self.ready.len();
        let split = (index(first) / WORD_BITS).min(words);
        let high = self.scan(split, words).skip_while(|&fd| fd < first);
        let low = self.scan(0, (split + 1).min(words)).take_while(|&fd| fd < first);
        for fd in high.chain(low) {
            if *left == 0 {
                return;
            }
            *left -= 1;
            on_ready(fd);
        }
    }

    fn scan(&self, from: usize, to: usize) -> impl Iterator<Item = RawFd> {
        let offset = RawFd::try_from(from * WORD_BITS).unwrap_or(0);
        FdSetIter::new(&self.ready[from..to]).map(move |fd| fd + offset)
    }
}

/// The read and write sets of the backend.
#[derive(Default)]
pub(super) struct Sets {
    read: Set,
    write: Set,
    /// Descriptor at which the scan starts; for fairness, one past the descriptor reported first by the previous call.
    first: RawFd,
}

impl Sets {
    pub(super) fn set(&mut self, fd: RawFd, read: bool, write: bool) {
        self.read.set_member(fd, read);
        self.write.set_member(fd, write);
    }

    /// Waits, and calls `on_ready` for each ready descriptor and direction.
    pub(super) fn select(
        &mut self,
        timeout: Option<Duration>,
        mut on_ready: impl FnMut(RawFd, Ready),
    ) -> io::Result<()> {
        let bound = self.read.bound.max(self.write.bound);
        let timeout =
            timeout.map(|limit| Timespec::try_from(limit).unwrap_or(Timespec { tv_sec: i32::MAX.into(), tv_nsec: 0 }));
        let (read, write) = (self.read.prepare(bound), self.write.prepare(bound));
        // SAFETY: every descriptor in the sets is borrowed from a source that the loop removes before it closes it
        // (the contract of `Readiness::remove`), or belongs to the waker; both sets have the words that `bound` needs.
        let found = unsafe { rustix::event::select(bound, read, write, None, timeout.as_ref())? };
        let mut left = usize::try_from(found).unwrap_or(0);
        let mut first = None;
        self.read.report(self.first, &mut left, |fd| {
            first.get_or_insert(fd);
            on_ready(fd, Ready { readable: true, writable: false, hangup: false });
        });
        self.write.report(self.first, &mut left, |fd| {
            first.get_or_insert(fd);
            on_ready(fd, Ready { readable: false, writable: true, hangup: false });
        });
        self.first = first.map_or(self.first, |first| first + 1);
        Ok(())
    }
}

/// The token of each descriptor, indexed by descriptor; [`Token::RESERVED`] marks a free entry.
#[derive(Default)]
pub(super) struct Tokens(Vec<Token>);

impl Tokens {
    #[inline]
    pub(super) fn get(&self, fd: RawFd) -> Option<Token> {
        self.0.get(index(fd)).copied().filter(|&token| token != Token::RESERVED)
    }

    /// Inserts a token unless the descriptor already has one; returns the existing token, if any.
    pub(super) fn insert(&mut self, fd: RawFd, token: Token) -> Option<Token> {
        let existing = self.get(fd);
        if existing.is_none() {
            let index = index(fd);
            if self.0.len() <= index {
                self.0.resize(index + 1, Token::RESERVED);
            }
            self.0[index] = token;
        }
        existing
    }

    pub(super) fn remove(&mut self, fd: RawFd) -> Option<Token> {
        let token = self.get(fd)?;
        self.0[index(fd)] = Token::RESERVED;
        Some(token)
    }
}
