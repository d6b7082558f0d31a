//! Benchmarks the request parser and the response head encoder in isolation.

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use serverd::StatusCode;
use serverd::http1::{Connection, Encoder, Event, Head, Length, Limits, ResponseHead};

const PLAIN: &[u8] = b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n";

const BROWSER: &[u8] = b"GET /index.html?q=readiness+loop HTTP/1.1\r\n\
Host: www.example.test\r\n\
User-Agent: Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0\r\n\
Accept: text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8\r\n\
Accept-Language: en-GB,en;q=0.5\r\n\
Accept-Encoding: gzip, deflate, br, zstd\r\n\
Referer: http://www.example.test/search?q=servers&page=2\r\n\
Connection: keep-alive\r\n\
Cookie: session=0123456789abcdef0123456789abcdef; theme=dark; consent=yes; seen=42\r\n\
Upgrade-Insecure-Requests: 1\r\n\
Sec-Fetch-Dest: document\r\n\
Sec-Fetch-Mode: navigate\r\n\
Sec-Fetch-Site: same-origin\r\n\
Sec-Fetch-User: ?1\r\n\
Priority: u=0, i\r\n\r\n";

fn parse(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("parse");
    for (name, request) in [("plain", PLAIN), ("browser", BROWSER)] {
        let (mut connection, mut scratch, limits) = (Connection::new(), Head::default(), Limits::default());
        group.throughput(Throughput::Bytes(request.len() as u64));
        group.bench_function(name, |bencher| {
            bencher.iter(|| {
                let (used, event) =
                    connection.receive(&mut scratch, &limits, black_box(request)).expect("a valid request");
                assert!(used == request.len() && matches!(event, Event::Head { .. }));
            });
        });
    }
    group.finish();
}

fn encode(criterion: &mut Criterion) {
    let (mut encoder, mut out) = (Encoder::new(), Vec::new());
    criterion.bench_function("encode/plain", |bencher| {
        bencher.iter(|| {
            out.clear();
            let head = ResponseHead::new(StatusCode::OK);
            let head = head.content_type("text/plain; charset=utf-8").length(Length::Known(28));
            encoder.head(&mut out, 1_000_000_000, black_box(&head));
            black_box(&out);
        });
    });
}

criterion_group! {
    name = benches;
    config = Criterion::default().warm_up_time(std::time::Duration::from_secs(1)).measurement_time(std::time::Duration::from_secs(3));
    targets = parse, encode
}
criterion_main!(benches);
