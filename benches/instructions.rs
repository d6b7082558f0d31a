//! What `benches/instructions.py` counts under callgrind: one thing, so many times. Run by `cargo bench` it does each
//! once, so that it keeps working.

use std::hint::black_box;

use serverd::StatusCode;
use serverd::http1::{Connection, Encoder, Event, Head, Length, Limits, Persistence, ResponseHead};

const PLAIN: &[u8] = include_bytes!("requests/plain.http");
const BROWSER: &[u8] = include_bytes!("requests/browser.http");

fn parse(request: &[u8], count: usize) {
    let (mut connection, mut scratch, limits) = (Connection::new(), Head::default(), Limits::default());
    for _ in 0..count {
        let (used, event) = connection.receive(&mut scratch, &limits, black_box(request)).expect("a valid request");
        assert!(used == request.len() && matches!(event, Event::Head { .. }));
    }
}

fn encode(count: usize) {
    let (mut encoder, mut out) = (Encoder::new(), Vec::new());
    let (length, persistence) = (Length::Known(28), Persistence::Silent);
    let content_type = Some("text/plain; charset=utf-8");
    let head = ResponseHead { status: StatusCode::OK, content_type, fields: b"", shared: b"", length, persistence };
    for _ in 0..count {
        out.clear();
        encoder.head(&mut out, 1_000_000_000, black_box(&head));
        black_box(&out);
    }
}

fn main() {
    let mut words = std::env::args().skip(1).filter(|word| !word.starts_with("--"));
    let (name, count) = (words.next(), words.next().and_then(|count| count.parse().ok()).unwrap_or(1));
    let wanted = |own: &str| name.as_deref().is_none_or(|name| name == own);
    if wanted("parse-plain") {
        parse(PLAIN, count);
    }
    if wanted("parse-browser") {
        parse(BROWSER, count);
    }
    if wanted("response-head") {
        encode(count);
    }
}
