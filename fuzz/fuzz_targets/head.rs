//! Invariants: no head makes the parser panic or exceed its limits; the events do not depend on how the input is split;
//! and if httparse also accepts the head, both parse the same method, target, version and headers.
#![no_main]

#[path = "../../tests/it/feed_input.rs"]
mod feed_input;

use libfuzzer_sys::fuzz_target;
use serverd::http1::{Limits, Version};

fuzz_target!(|data: &[u8]| {
    let Some((&seed, input)) = data.split_first() else { return };
    let limits = if seed & 1 == 0 {
        Limits::default()
    } else {
        Limits::default().head_bytes_max(256).headers_max(4).target_bytes_max(32)
    };
    let unsplit = feed_input::feed(input, &limits, false, &mut || usize::MAX >> 1);
    assert_eq!(feed_input::feed(input, &limits, false, &mut || 1), unsplit);
    assert_eq!(feed_input::feed(input, &limits, true, &mut feed_input::random_splits(u64::from(seed))), unsplit);
    for (bytes, head) in &unsplit.heads {
        let mut slots = [httparse::EMPTY_HEADER; 100];
        let mut other = httparse::Request::new(&mut slots);
        let Ok(httparse::Status::Complete(end)) = other.parse(bytes) else { continue };
        assert_eq!(end, bytes.len());
        assert_eq!(other.method.unwrap_or("").as_bytes(), head.method(bytes));
        assert_eq!(other.path.unwrap_or("").as_bytes(), head.target(bytes));
        assert_eq!(other.version == Some(1), head.version() == Version::Http11);
        let headers: Vec<_> = other.headers.iter().map(|header| (header.name.as_bytes(), header.value)).collect();
        assert_eq!(headers, head.headers(bytes).collect::<Vec<_>>());
    }
});
