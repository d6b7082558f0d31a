//! Parts of files (RFC 9110 section 14), of small ones that are kept in memory and of large ones that are not.

use super::{Tree, ask};
use crate::harness::{Answer, Random, on_every_backend};

const LARGE: usize = 300_000;

fn tree() -> (Tree, Vec<u8>) {
    let tree = Tree::new(&[("empty.txt", "")]);
    let bytes = Random::new(5).bytes(LARGE);
    tree.write("large.bin", &bytes);
    tree.write("small.bin", &bytes[..10_000]);
    (tree, bytes)
}

/// The parts of a multipart answer, with their ranges.
fn parts(answer: &Answer) -> Vec<(String, Vec<u8>)> {
    let content_type = answer.field("content-type").expect("a type");
    let boundary = content_type.strip_prefix("multipart/byteranges; boundary=").expect("a boundary");
    assert!((1..=70).contains(&boundary.len()), "RFC 2046 section 5.1.1: {boundary}");
    let (mut rest, mut parts) = (&answer.body[..], Vec::new());
    let take = |rest: &mut &[u8], text: &str| {
        *rest = rest.strip_prefix(text.as_bytes()).unwrap_or_else(|| panic!("no {text:?} in {rest:?}"));
    };
    take(&mut rest, &format!("--{boundary}\r\nContent-Type: application/octet-stream\r\nContent-Range: bytes "));
    loop {
        let end = rest.windows(4).position(|four| four == b"\r\n\r\n").expect("an empty line");
        let range = String::from_utf8(rest[..end].to_vec()).expect("text");
        rest = &rest[end + 4..];
        let (first, last) = range.split_once('/').and_then(|(range, _)| range.split_once('-')).expect("a range");
        let len = last.parse::<usize>().expect("a number") - first.parse::<usize>().expect("a number") + 1;
        parts.push((range, rest[..len].to_vec()));
        rest = &rest[len..];
        take(&mut rest, &format!("\r\n--{boundary}"));
        if rest == b"--\r\n" {
            return parts;
        }
        take(&mut rest, "\r\nContent-Type: application/octet-stream\r\nContent-Range: bytes ");
    }
}

on_every_backend! {
    fn one_part_is_what_was_asked_for<B>() {
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
                let answer = ask(&mut client, "GET", path, &format!("Range: bytes={range}\r\n"));
                assert_eq!(answer.status, 206, "{path} {range}");
                let content_range = format!("bytes {first}-{}/{len}", end - 1);
                assert_eq!(answer.field("content-range"), Some(content_range.as_str()), "{path} {range}");
                assert!(answer.body == bytes[first..end], "{path} {range}");
            }
        }
    }

    fn several_parts_come_in_one_answer<B>() {
        let (tree, bytes) = tree();
        let server = tree.serve::<B>();
        let mut client = server.connect();
        for (path, len) in [("/small.bin", 10_000), ("/large.bin", LARGE)] {
            let answer = ask(&mut client, "GET", path, "Range: bytes=5000-5999, 0-9 ,-5\r\n");
            assert_eq!((answer.status, answer.field("content-range")), (206, None), "{path}");
            let expected = [(5000, 6000), (0, 10), (len - 5, len)].map(|(first, end)| {
                (format!("{first}-{}/{len}", end - 1), bytes[first..end].to_vec())
            });
            assert!(parts(&answer) == expected, "{path}");
            assert!(answer.field("etag").is_some() && answer.field("last-modified").is_some());
        }
    }

    fn an_attack_by_ranges_costs_no_more_than_the_file<B>() {
        let (tree, bytes) = tree();
        let server = tree.serve::<B>();
        let mut client = server.connect();
        let starts = |count: usize| (0..count).fold("Range: bytes=".to_owned(), |list, at| format!("{list}{at}-,")) + "\r\n";
        let answer = ask(&mut client, "GET", "/large.bin", &starts(200));
        assert!(answer.status == 200 && answer.body == bytes, "too many are ignored");
        let answer = ask(&mut client, "GET", "/large.bin", &starts(90));
        assert!(answer.status == 206 && answer.body == bytes, "what overlaps is sent once");
    }

    fn what_is_no_range_and_other_methods_get_everything<B>() {
        let (tree, bytes) = tree();
        let server = tree.serve::<B>();
        let mut client = server.connect();
        for range in ["bytes=2-1", "bytes=x-", "chapters=1-2", "bytes", "bytes=-"] {
            let answer = ask(&mut client, "GET", "/small.bin", &format!("Range: {range}\r\n"));
            assert!(answer.status == 200 && answer.body == bytes[..10_000], "{range}");
        }
        // RFC 9110 section 14.2: ranges are defined for GET.
        let answer = ask(&mut client, "HEAD", "/small.bin", "Range: bytes=0-1\r\n");
        assert_eq!((answer.status, answer.field("content-length")), (200, Some("10000")));
        for (range, status) in [("bytes=0-", 416), ("bytes=-0", 416), ("bytes=-1", 200)] {
            let answer = ask(&mut client, "GET", "/empty.txt", &format!("Range: {range}\r\n"));
            assert_eq!(answer.status, status, "{range} of nothing");
        }
    }
}
