//! Range requests (RFC 9110 section 14), for small files held in memory and large ones sent from a descriptor.

use super::{Tree, request};
use crate::harness::{Random, RawResponse, on_every_backend};

const LARGE: usize = 300_000;

fn tree() -> (Tree, Vec<u8>) {
    let tree = Tree::new(&[("empty.txt", "")]);
    let bytes = Random::new(5).bytes(LARGE);
    tree.write("large.bin", &bytes);
    tree.write("small.bin", &bytes[..10_000]);
    (tree, bytes)
}

/// Parses a multipart/byteranges response into its ranges and their bytes.
fn parts(response: &RawResponse) -> Vec<(String, Vec<u8>)> {
    let content_type = response.header("content-type").expect("Content-Type");
    let boundary = content_type.strip_prefix("multipart/byteranges; boundary=").expect("boundary");
    assert!((1..=70).contains(&boundary.len()), "RFC 2046 section 5.1.1: {boundary}");
    let (mut rest, mut parts) = (&response.body[..], Vec::new());
    let skip = |rest: &mut &[u8], text: &str| {
        *rest = rest.strip_prefix(text.as_bytes()).unwrap_or_else(|| panic!("no {text:?} in {rest:?}"));
    };
    skip(&mut rest, &format!("--{boundary}\r\nContent-Type: application/octet-stream\r\nContent-Range: bytes "));
    loop {
        let end = rest.windows(4).position(|window| window == b"\r\n\r\n").expect("end of part headers");
        let range = String::from_utf8(rest[..end].to_vec()).expect("UTF-8");
        rest = &rest[end + 4..];
        let (first, last) = range.split_once('/').and_then(|(range, _)| range.split_once('-')).expect("range");
        let len = last.parse::<usize>().expect("number") - first.parse::<usize>().expect("number") + 1;
        parts.push((range, rest[..len].to_vec()));
        rest = &rest[len..];
        skip(&mut rest, &format!("\r\n--{boundary}"));
        if rest == b"--\r\n" {
            return parts;
        }
        skip(&mut rest, "\r\nContent-Type: application/octet-stream\r\nContent-Range: bytes ");
    }
}

on_every_backend! {
    over_tls_too:

    fn a_single_range_returns_the_requested_bytes<B>() {
        let (tree, bytes) = tree();
        let server = tree.serve::<B>();
        let mut client = server.connect();
        for (path, len) in [("/small.bin", 10_000), ("/large.bin", LARGE)] {
            for (range, first, end) in [
                ("0-0", 0, 1),
                ("1-1000", 1, 1001),
                ("9000-", 9000, len),
                ("-1", len - 1, len),
                ("-999999999999", 0, len),
                ("5-999999999999", 5, len),
                ("0-9,100-199", 0, 200),
            ] {
                let response = request(&mut client, "GET", path, &format!("Range: bytes={range}\r\n"));
                assert_eq!(response.status, 206, "{path} {range}");
                let content_range = format!("bytes {first}-{}/{len}", end - 1);
                assert_eq!(response.header("content-range"), Some(content_range.as_str()), "{path} {range}");
                assert!(response.body == bytes[first..end], "{path} {range}");
            }
        }
    }

    fn several_ranges_are_sent_as_multipart<B>() {
        let (tree, bytes) = tree();
        let server = tree.serve::<B>();
        let mut client = server.connect();
        for (path, len) in [("/small.bin", 10_000), ("/large.bin", LARGE)] {
            let response = request(&mut client, "GET", path, "Range: bytes=5000-5999, 0-9 ,-5\r\n");
            assert_eq!((response.status, response.header("content-range")), (206, None), "{path}");
            let expected = [(5000, 6000), (0, 10), (len - 5, len)].map(|(first, end)| {
                (format!("{first}-{}/{len}", end - 1), bytes[first..end].to_vec())
            });
            assert!(parts(&response) == expected, "{path}");
            assert!(response.header("etag").is_some() && response.header("last-modified").is_some());
        }
    }

    fn a_range_attack_costs_no_more_than_the_whole_file<B>() {
        let (tree, bytes) = tree();
        let server = tree.serve::<B>();
        let mut client = server.connect();
        let starts = |count: usize| (0..count).fold("Range: bytes=".to_owned(), |list, at| format!("{list}{at}-,")) + "\r\n";
        let response = request(&mut client, "GET", "/large.bin", &starts(200));
        assert!(response.status == 200 && response.body == bytes, "a Range header with too many ranges is ignored");
        let response = request(&mut client, "GET", "/large.bin", &starts(90));
        assert!(response.status == 206 && response.body == bytes, "overlapping ranges are merged");
    }

    fn invalid_ranges_and_other_methods_get_the_whole_file<B>() {
        let (tree, bytes) = tree();
        let server = tree.serve::<B>();
        let mut client = server.connect();
        for range in ["bytes=2-1", "bytes=x-", "chapters=1-2", "bytes", "bytes=-"] {
            let response = request(&mut client, "GET", "/small.bin", &format!("Range: {range}\r\n"));
            assert!(response.status == 200 && response.body == bytes[..10_000], "{range}");
        }
        // RFC 9110 section 14.2: Range is only defined for GET.
        let response = request(&mut client, "HEAD", "/small.bin", "Range: bytes=0-1\r\n");
        assert_eq!((response.status, response.header("content-length")), (200, Some("10000")));
        for (range, status) in [("bytes=0-", 200), ("bytes=-0", 200), ("bytes=-1", 200)] {
            let response = request(&mut client, "GET", "/empty.txt", &format!("Range: {range}\r\n"));
            assert_eq!(response.status, status, "{range} of an empty file");
        }
    }
}
