//! Reads a form in one piece and in pieces; both must give the same parts or the same error.
#![no_main]

use libfuzzer_sys::fuzz_target;
use serverd::multipart::{Error, Event, Limits, Part, Reader};

fn read<'a>(pieces: impl Iterator<Item = &'a [u8]>) -> Result<Vec<(Part, Vec<u8>)>, Error> {
    let limits = Limits::default().text_bytes_max(64).file_bytes_max(256).header_bytes_max(128).parts_max(4);
    let mut reader = Reader::new(b"multipart/form-data; boundary=b").expect("a boundary").limits(limits);
    let mut parts: Vec<(Part, Vec<u8>)> = Vec::new();
    for piece in pieces {
        for event in reader.feed(piece) {
            match event? {
                Event::Part(part) => parts.push((part, Vec::new())),
                Event::Data(data) => parts.last_mut().expect("a part").1.extend_from_slice(data),
                _ => {}
            }
        }
    }
    reader.finish().map(|()| parts)
}

// The first byte is the size of the pieces.
fuzz_target!(|input: &[u8]| {
    let Some((&size, body)) = input.split_first() else { return };
    let whole = read(std::iter::once(body));
    assert_eq!(whole, read(body.chunks(usize::from(size).max(1))));
    for (part, _) in whole.iter().flatten() {
        assert!(part.file_name().is_none_or(|name| name.len() <= 255 && !name.contains(['/', '\\', '\0'])));
    }
});
