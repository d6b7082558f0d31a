//! Small files, read into memory at once, unless that would have to wait for a disk.

use std::fs::File;
use std::io::{self, Read};

/// Files up to this size are kept in memory: sending one from there costs less than half of what the calls cost that
/// send it from a descriptor.
pub(super) const SMALL_BYTES_MAX: u64 = 32 * 1024;

/// The whole of a file of about this length; none if it is not small any more, or not in the system's memory yet. Then
/// the sending of it sees to that, which does not hold up others.
#[cfg(target_os = "linux")]
pub(super) fn read(file: &File, len: u64) -> io::Result<Option<Vec<u8>>> {
    use rustix::io::{Errno, ReadWriteFlags, preadv2};
    // One more, to see the end.
    let mut text = vec![0; usize::try_from(len).unwrap_or(usize::MAX) + 1];
    let mut filled = 0;
    while filled < text.len() {
        let mut rest = [io::IoSliceMut::new(&mut text[filled..])];
        match preadv2(file, &mut rest, filled as u64, ReadWriteFlags::NOWAIT) {
            Ok(0) if filled as u64 == len => {
                text.truncate(filled);
                text.shrink_to_fit();
                return Ok(Some(text));
            }
            Ok(count @ 1..) => filled += count,
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => return Ok(None),
            // It became shorter, or this is Linux 5.9, which sees no more than is in memory; a file system that does
            // not know the flag; any fault, which comes again. And where it has grown the loop ends.
            Ok(_) | Err(_) => break,
        }
    }
    read_slowly(file)
}

#[cfg(not(target_os = "linux"))]
pub(super) fn read(file: &File, _: u64) -> io::Result<Option<Vec<u8>>> {
    read_slowly(file)
}

fn read_slowly(mut file: &File) -> io::Result<Option<Vec<u8>>> {
    let mut text = Vec::new();
    file.by_ref().take(SMALL_BYTES_MAX + 1).read_to_end(&mut text)?;
    Ok((text.len() as u64 <= SMALL_BYTES_MAX).then_some(text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_read_whole_whatever_its_length_was() {
        let directory = tempfile::TempDir::new().unwrap();
        let path = directory.path().join("file");
        for (written, told) in
            [(0, 0), (1, 1), (5000, 5000), (5000, 10), (10, 5000), (32 * 1024, 32 * 1024), (32 * 1024, 1)]
        {
            let bytes = vec![b'x'; written];
            std::fs::write(&path, &bytes).unwrap();
            // What was just written is in memory.
            assert_eq!(read(&File::open(&path).unwrap(), told).unwrap(), Some(bytes), "{written} for {told}");
        }
        std::fs::write(&path, vec![b'x'; 32 * 1024 + 1]).unwrap();
        assert_eq!(read(&File::open(&path).unwrap(), 10).unwrap(), None);
    }
}
