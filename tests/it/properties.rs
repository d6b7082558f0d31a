//! Property tests: check invariants with random inputs, which are shrunk on failure.

use http::StatusCode;
use proptest::prelude::*;
use serverd::http1::{Encoder, Length, Limits, Persistence, ResponseHead};

use crate::feed_input::{feed, random_splits};

/// Limits small enough for random input to reach them.
fn small_limits() -> Limits {
    Limits::default().head_bytes_max(300).headers_max(6).target_bytes_max(40).body_bytes_max(50).trailer_bytes_max(30)
}

/// Generates random sequences of valid and invalid request fragments, so that inputs reach deep parser states.
fn fragments() -> impl Strategy<Value = Vec<u8>> {
    let known = prop::sample::select(vec![
        "GET / HTTP/1.1\r\n",
        "POST /a?b=%20 HTTP/1.1\r\n",
        "OPTIONS * HTTP/1.1\r\n",
        "GET http://h/ HTTP/1.0\r\n",
        "Host: a\r\n",
        "Host: a\n",
        "Content-Length: 5\r\n",
        "Content-Length: 999\r\n",
        "Transfer-Encoding: chunked\r\n",
        "Transfer-Encoding: gzip, chunked\r\n",
        "Connection: close, x\r\n",
        "Expect: 100-continue\r\n",
        "X-Any: \t a b \r\n",
        "HEAD /%41?[] HTTP/1.1\r\n",
        "CONNECT / HTTP/1.1\r\n",
        "Accept-Language:en-GB,en;q=0.9,de-DE;q=0.8\r\n",
        "Accept-Language:  en-GB \r\n",
        "X-Nothing: \r\n",
        "X-Nothing:\r\n",
        "Sec-Fetch-Destination-And-More: a\x7f\r\n",
        "connection: KEEP-alive\r\n",
        " folded\r\n",
        "\r\n",
        "\n",
        "\r",
        "hello",
        "5\r\nhello\r\n",
        "1;a=\"b\"\r\nx\r\n",
        "0\r\n\r\n",
        "0\r\nX-T: v\r\n\r\n",
        "ffffffffffffffff\r\n",
    ])
    .prop_map(|text| text.as_bytes().to_vec());
    let request = Just(b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n".to_vec());
    let noise = prop::collection::vec(any::<u8>(), 0..8);
    prop::collection::vec(prop_oneof![8 => known, 2 => request, 1 => noise], 0..24).prop_map(|list| list.concat())
}

fn token() -> impl Strategy<Value = String> {
    "[!#$%&'*+.^_`|~0-9A-Za-z-]{1,20}"
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(2000) })]

    #[test]
    fn any_split_of_any_input_gives_the_same_events(
        input in fragments(),
        seed in any::<u64>(),
        small in any::<bool>(),
    ) {
        let limits = if small { small_limits() } else { Limits::default() };
        let unsplit = feed(&input, &limits, false, &mut || usize::MAX >> 1);
        prop_assert_eq!(&feed(&input, &limits, true, &mut || 1), &unsplit);
        prop_assert_eq!(&feed(&input, &limits, seed % 2 == 0, &mut random_splits(seed)), &unsplit);
    }

    #[test]
    fn a_response_head_round_trips(
        status in 200_u16..=999,
        content_type in prop::option::of(Just("text/plain; charset=utf-8")),
        headers in prop::collection::vec((token(), "[!-~\u{80}-\u{ff}]([ -~]{0,30}[!-~])?"), 0..8),
        length in prop::option::of(any::<u64>()),
        persistence in prop::sample::select(vec![Persistence::Implicit, Persistence::KeepAlive, Persistence::Close]),
        now in any::<u64>(),
    ) {
        let lines: Vec<String> = headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
        let lines = lines.concat();
        let status = StatusCode::from_u16(status).expect("three digits");
        let framing = length.map_or(Length::Unspecified, Length::Known);
        let head = ResponseHead::new(status).content_type(content_type).headers(lines.as_bytes());
        let head = head.length(framing).persistence(persistence);
        let mut out = Vec::new();
        Encoder::new().head(&mut out, now, &head);

        let mut slots = [httparse::EMPTY_HEADER; 32];
        let mut parsed = httparse::Response::new(&mut slots);
        let end = parsed.parse(&out).expect("httparse accepts it");
        prop_assert_eq!(end, httparse::Status::Complete(out.len()), "httparse finds the same end");
        prop_assert_eq!((parsed.version, parsed.code), (Some(1), Some(status.as_u16())));
        let mut seen: Vec<(String, Vec<u8>)> =
            parsed.headers.iter().map(|header| (header.name.to_owned(), header.value.to_vec())).collect();
        let mut expected: Vec<(String, Vec<u8>)> = vec![("Server".into(), b"serverd".to_vec())];
        let date = seen.remove(1);
        prop_assert_eq!(date.0.as_str(), "Date");
        let date = String::from_utf8(date.1).expect("ASCII");
        prop_assert!(httpdate::parse_http_date(&date).is_ok(), "{}", date);
        expected.extend(content_type.map(|value| ("Content-Type".into(), value.as_bytes().to_vec())));
        expected.extend(length.map(|length| ("Content-Length".into(), length.to_string().into_bytes())));
        expected.extend(headers.iter().map(|(name, value)| (name.clone(), value.as_bytes().to_vec())));
        expected.extend(match persistence {
            Persistence::Implicit => None,
            Persistence::KeepAlive => Some(("Connection".into(), b"keep-alive".to_vec())),
            Persistence::Close => Some(("Connection".into(), b"close".to_vec())),
        });
        prop_assert_eq!(seen, expected);
    }

    #[test]
    fn httparse_agrees_on_every_head_both_accept(input in fragments()) {
        let seen = feed(&input, &Limits::default(), false, &mut || usize::MAX >> 1);
        for (bytes, head) in seen.heads {
            let mut slots = [httparse::EMPTY_HEADER; 100];
            let mut parsed = httparse::Request::new(&mut slots);
            if let Ok(httparse::Status::Complete(end)) = parsed.parse(&bytes) {
                prop_assert_eq!(end, bytes.len());
                prop_assert_eq!(parsed.method.unwrap_or("").as_bytes(), head.method(&bytes));
                prop_assert_eq!(parsed.path.unwrap_or("").as_bytes(), head.target(&bytes));
                let headers: Vec<_> =
                    parsed.headers.iter().map(|header| (header.name.as_bytes(), header.value)).collect();
                prop_assert_eq!(headers, head.headers(&bytes).collect::<Vec<_>>());
            }
        }
    }
}

/// The fuzz corpus reaches states that random inputs rarely do.
#[test]
fn the_fuzz_corpus_gives_the_same_events_however_it_is_split() {
    let corpus = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus");
    if !corpus.is_dir() {
        eprintln!("skipped: the published package does not include fuzz/");
        return;
    }
    let body = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n";
    let mut count = 0;
    for (target, before) in [("head", &b""[..]), ("chunked", body), ("connection", b"")] {
        for entry in std::fs::read_dir(corpus.join(target)).expect("the corpus of a fuzz target") {
            let data = std::fs::read(entry.expect("an entry").path()).expect("an input");
            let Some((&seed, rest)) = data.split_first() else { continue };
            let input = [before, rest].concat();
            let limits = if seed & 1 == 0 { Limits::default() } else { small_limits() };
            let unsplit = feed(&input, &limits, false, &mut || usize::MAX >> 1);
            assert_eq!(feed(&input, &limits, true, &mut || 1), unsplit);
            assert_eq!(feed(&input, &limits, false, &mut random_splits(u64::from(seed))), unsplit);
            count += 1;
        }
    }
    assert!(count > 500, "only {count} inputs found");
}
