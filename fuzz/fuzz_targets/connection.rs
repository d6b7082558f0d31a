//! Invariant: no stream of requests makes a connection panic or pass its limits; the cuts, and taking whole bodies as
//! they stand, change nothing; requests and bodies are as many as heads, less one that is unfinished or at fault.
#![no_main]

#[path = "../../tests/it/feed.rs"]
mod feed;

use libfuzzer_sys::fuzz_target;
use serverd::http1::{Framing, Limits};

fuzz_target!(|data: &[u8]| {
    let Some((&seed, input)) = data.split_first() else { return };
    let limits = if seed & 1 == 0 {
        Limits::default()
    } else {
        Limits { head_bytes_max: 256, fields_max: 4, target_bytes_max: 32, body_bytes_max: 64, trailer_bytes_max: 64 }
    };
    let whole = feed::feed(input, &limits, false, &mut || usize::MAX >> 1);
    assert_eq!(feed::feed(input, &limits, true, &mut || usize::MAX >> 1), whole);
    assert_eq!(feed::feed(input, &limits, true, &mut || 1), whole);
    assert_eq!(feed::feed(input, &limits, false, &mut feed::random_cuts(u64::from(seed))), whole);
    let with_body = whole.heads.iter().filter(|(_, head)| head.framing() != Framing::None).count();
    assert!(whole.ends == with_body || whole.ends + 1 == with_body);
});
