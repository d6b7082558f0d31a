//! Reads small files into memory, unless that would block on disk.

use std::fs::File;
use std::io::{self, Read};

/// Maximum size of a file that is held in memory. Sending it from memory costs less than half as much as the system
/// calls that send it from a descriptor.
pub(super) const SMALL_BYTES_MAX: u64 = 32 * 1024;

/// Reads a whole file of about `len` bytes. Returns `None` if the file has grown too large or is not in the page cache;
/// it is then sent from its descriptor, whose read-ahead does not block the loop.
#[cfg(target_os = "linux")]
pub(super) fn read(file: &File, len: u64) -> io::Result<Option<Vec<u8>>> {
    use rustix::io::{Errno, ReadWriteFlags, preadv2};
    // One extra byte, to detect whether the file has grown.
    let mut content = vec![0; usize::try_from(len).unwrap_or(usize::MAX) + 1];
    let mut filled = 0;
    while filled < content.len() {
        let mut rest = [io::IoSliceMut::new(&mut content[filled..])];
        match preadv2(file, &mut rest, filled as u64, ReadWriteFlags::NOWAIT) {
            Ok(0) if filled as u64 == len => {
                content.truncate(filled);
                content.shrink_to_fit();
                return Ok(Some(content));
            }
            Ok(count @ 1..) => filled += count,
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => return Ok(None),
            // Fall back to a plain read: the file has shrunk (or Linux 5.9 stopped at the end of the cached data), the
            // file system does not support RWF_NOWAIT, or an error occurred, which will recur. If the file has grown,
            // the loop ends because the buffer is full.
            Ok(_) | Err(_) => break,
        }
    }
    read_blocking(file)
}

#[cfg(not(target_os = "linux"))]
pub(super) fn read(file: &File, _: u64) -> io::Result<Option<Vec<u8>>> {
    read_blocking(file)
}

fn read_blocking(mut file: &File) -> io::Result<Option<Vec<u8>>> {
    let mut content = Vec::new();
    file.by_ref().take(SMALL_BYTES_MAX + 1).read_to_end(&mut content)?;
    Ok((content.len() as u64 <= SMALL_BYTES_MAX).then_some(content))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_read_completely_even_if_its_length_has_changed() {
        let directory = tempfile::TempDir::new().unwrap();
        let path = directory.path().join("file");
        for (written, expected_len) in
            [(0, 0), (1, 1), (5000, 5000), (5000, 10), (10, 5000), (32 * 1024, 32 * 1024), (32 * 1024, 1)]
        {
            let bytes = vec![b'x'; written];
            std::fs::write(&path, &bytes).unwrap();
            // Data just written is in the page cache.
            assert_eq!(
                read(&File::open(&path).unwrap(), expected_len).unwrap(),
                Some(bytes),
                "{written} bytes, expected {expected_len}"
            );
        }
        std::fs::write(&path, vec![b'x'; 32 * 1024 + 1]).unwrap();
        assert_eq!(read(&File::open(&path).unwrap(), 10).unwrap(), None);
    }
}
