//! Invariants: no stream of requests makes a connection panic or exceed its limits; neither splitting the input nor
//! taking complete bodies directly changes the events; and an end of body follows every head with a body, except for a
//! final body that is incomplete or rejected.
#![no_main]

#[path = "../../tests/it/feed_input.rs"]
mod feed_input;

use libfuzzer_sys::fuzz_target;
use serverd::http1::{Framing, Limits};

fuzz_target!(|data: &[u8]| {
    let Some((&seed, input)) = data.split_first() else { return };
    let limits = if seed & 1 == 0 {
        Limits::default()
    } else {
        Limits::default().head_bytes_max(256).headers_max(4).target_bytes_max(32).body_bytes_max(64).trailer_bytes_max(64)
    };
    let unsplit = feed_input::feed(input, &limits, false, &mut || usize::MAX >> 1);
    assert_eq!(feed_input::feed(input, &limits, true, &mut || usize::MAX >> 1), unsplit);
    assert_eq!(feed_input::feed(input, &limits, true, &mut || 1), unsplit);
    assert_eq!(feed_input::feed(input, &limits, false, &mut feed_input::random_splits(u64::from(seed))), unsplit);
    let with_body = unsplit.heads.iter().filter(|(_, head)| head.framing() != Framing::None).count();
    assert!(unsplit.ends == with_body || unsplit.ends + 1 == with_body);
});
