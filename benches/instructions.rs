//! The workloads that `benches/instructions.py` runs under callgrind: `instructions NAME COUNT`. Without arguments, as
//! in `cargo bench`, each workload runs once, as a smoke test.

use std::hint::black_box;

use serverd::StatusCode;
use serverd::http1::{Connection, Encoder, Event, Head, Length, Limits, ResponseHead};

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
    let content_type = "text/plain; charset=utf-8";
    let head = ResponseHead::new(StatusCode::OK).content_type(content_type).length(Length::Known(28));
    for _ in 0..count {
        out.clear();
        encoder.head(&mut out, 1_000_000_000, black_box(&head));
        black_box(&out);
    }
}

fn main() {
    let mut args = std::env::args().skip(1).filter(|arg| !arg.starts_with("--"));
    let (name, count) = (args.next(), args.next().and_then(|count| count.parse().ok()).unwrap_or(1));
    let is_selected = |workload: &str| name.as_deref().is_none_or(|name| name == workload);
    if is_selected("parse-plain") {
        parse(PLAIN, count);
    }
    if is_selected("parse-browser") {
        parse(BROWSER, count);
    }
    if is_selected("response-head") {
        encode(count);
    }
}
