//! Invariant: no head makes the parser panic or hold more than its limits; the cuts change nothing; and where httparse
//! reads the head too, both read the same method, target, version and fields.
#![no_main]

#[path = "../../tests/it/feed.rs"]
mod feed;

use libfuzzer_sys::fuzz_target;
use serverd::http1::{Limits, Version};

fuzz_target!(|data: &[u8]| {
    let Some((&seed, input)) = data.split_first() else { return };
    let limits = if seed & 1 == 0 {
        Limits::default()
    } else {
        Limits { head_bytes_max: 256, fields_max: 4, target_bytes_max: 32, ..Limits::default() }
    };
    let whole = feed::feed(input, &limits, false, &mut || usize::MAX >> 1);
    assert_eq!(feed::feed(input, &limits, false, &mut || 1), whole);
    assert_eq!(feed::feed(input, &limits, true, &mut feed::random_cuts(u64::from(seed))), whole);
    for (bytes, head) in &whole.heads {
        let mut slots = [httparse::EMPTY_HEADER; 100];
        let mut other = httparse::Request::new(&mut slots);
        let Ok(httparse::Status::Complete(end)) = other.parse(bytes) else { continue };
        assert_eq!(end, bytes.len());
        assert_eq!(other.method.unwrap_or("").as_bytes(), head.method(bytes));
        assert_eq!(other.path.unwrap_or("").as_bytes(), head.target(bytes));
        assert_eq!(other.version == Some(1), head.version() == Version::Http11);
        let fields: Vec<_> = other.headers.iter().map(|field| (field.name.as_bytes(), field.value)).collect();
        assert_eq!(fields, head.fields(bytes).collect::<Vec<_>>());
    }
});
