//! Additions to the standard library: locks without poisoning, durations in milliseconds, panics, and reads at an offset of
//! a file.

use std::any::Any;
use std::cell::RefCell;
use std::fs::File;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Locks a mutex and ignores poisoning: all data guarded in this crate is consistent after every statement.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Returns a duration in whole milliseconds, at most `u64::MAX`.
pub(crate) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// Drops values of the program one by one. A panic in a destructor is caught, so that the others are dropped too.
pub(crate) fn drop_each<T>(values: impl IntoIterator<Item = T>) {
    for value in values {
        if catch_unwind(AssertUnwindSafe(|| drop(value))).is_err() {
            log::error!("the destructor of a closure, message or context panicked");
        }
    }
}

/// Returns the message of a caught panic.
pub(crate) fn panic_text(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("without a message")
}

/// Size of the buffer of [`with_block`].
const BLOCK_BYTES: usize = 64 * 1024;

thread_local! {
    /// Allocated when the first file is sent without sendfile.
    static BLOCK: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// Reads up to `count` bytes at `offset` and passes them to `use_block`; an empty slice means the end of the file.
/// Bytes that `use_block` does not use are read again in the next call, so nothing is buffered.
pub(super) fn with_block<R>(
    file: &File,
    offset: u64,
    count: usize,
    use_block: impl FnOnce(&[u8]) -> io::Result<R>,
) -> io::Result<R> {
    BLOCK.with_borrow_mut(|buffer| {
        buffer.resize(BLOCK_BYTES, 0);
        let wanted = count.min(BLOCK_BYTES);
        let read = read_at(file, &mut buffer[..wanted], offset)?;
        use_block(&buffer[..read])
    })
}

/// Reads at an offset, without using the file's cursor. Retries if interrupted by a signal.
pub(crate) fn read_at(file: &File, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
    loop {
        match read_once(file, buffer, offset) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            // Regular files never block. Passed on, the error would make the loop wait for the stream to become
            // writable.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                return Err(io::Error::other("not a regular file: read would block"));
            }
            outcome => return outcome,
        }
    }
}

#[cfg(unix)]
fn read_once(file: &File, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
    std::os::unix::fs::FileExt::read_at(file, buffer, offset)
}

#[cfg(windows)]
fn read_once(file: &File, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
    std::os::windows::fs::FileExt::seek_read(file, buffer, offset)
}
