//! Preconditions, their precedence (RFC 9110 section 13.2.2), and the headers of the resulting responses.

use super::{LONG_AGO_TEXT, Tree, get, request};
use crate::harness::on_every_backend;

const EARLIER: &str = "Sat, 14 Nov 2020 11:59:59 GMT";
const LATER: &str = "Sat, 14 Nov 2020 12:00:01 GMT";

/// Request headers and the expected status. `TAG` is replaced with the ETag of the file, `DATE` with its Last-Modified,
/// and `EARLIER` and `LATER` with the dates above.
const CASES: &[(&str, u16)] = &[
    // If-Match uses the strong comparison.
    ("If-Match: TAG", 200),
    ("If-Match: \"x\", TAG", 200),
    ("If-Match: \"x\"\r\nIf-Match: TAG", 200),
    ("If-Match: *", 200),
    ("If-Match: \"x\"", 412),
    ("If-Match: W/TAG", 412),
    ("If-Match: ", 412),
    ("If-Match: nonsense", 412),
    // If-Unmodified-Since is ignored if If-Match is present.
    ("If-Unmodified-Since: DATE", 200),
    ("If-Unmodified-Since: LATER", 200),
    ("If-Unmodified-Since: EARLIER", 412),
    ("If-Unmodified-Since: nonsense", 200),
    ("If-Unmodified-Since: EARLIER\r\nIf-Unmodified-Since: EARLIER", 200),
    ("If-Match: TAG\r\nIf-Unmodified-Since: EARLIER", 200),
    ("If-Match: \"x\"\r\nIf-Unmodified-Since: LATER", 412),
    // If-None-Match uses the weak comparison.
    ("If-None-Match: TAG", 304),
    ("If-None-Match: W/TAG", 304),
    ("If-None-Match: \"x\" ,, TAG", 304),
    ("If-None-Match: \"x\"\r\nIf-None-Match: TAG", 304),
    ("If-None-Match: *", 304),
    ("If-None-Match: \"x\"", 200),
    ("If-None-Match: \"a,b\", \"c", 200),
    // If-Modified-Since is ignored if If-None-Match is present.
    ("If-Modified-Since: DATE", 304),
    ("If-Modified-Since: LATER", 304),
    ("If-Modified-Since: Tue, 01 Jan 2999 00:00:00 GMT", 304),
    ("If-Modified-Since: EARLIER", 200),
    ("If-Modified-Since: Saturday, 14-Nov-20 12:00:00 GMT", 304),
    ("If-Modified-Since: Sat Nov 14 12:00:00 2020", 304),
    ("If-Modified-Since: 14 Nov 2020", 200),
    ("If-None-Match: \"x\"\r\nIf-Modified-Since: DATE", 200),
    ("If-None-Match: TAG\r\nIf-Modified-Since: EARLIER", 304),
    // A failed precondition (412) takes precedence over 304.
    ("If-Match: \"x\"\r\nIf-None-Match: TAG", 412),
    ("If-Match: TAG\r\nIf-None-Match: TAG", 304),
    ("If-Unmodified-Since: EARLIER\r\nIf-None-Match: TAG", 412),
    ("If-Unmodified-Since: LATER\r\nIf-Modified-Since: DATE", 304),
    // All preconditions take precedence over Range. If-Range is ignored without Range.
    ("If-None-Match: TAG\r\nRange: bytes=0-1", 304),
    ("If-Match: \"x\"\r\nRange: bytes=0-1", 412),
    ("If-Match: TAG\r\nRange: bytes=0-1", 206),
    ("If-None-Match: \"x\"\r\nRange: bytes=0-1", 206),
    ("If-None-Match: TAG\r\nRange: bytes=99-", 304),
    ("If-Range: \"x\"", 200),
    ("If-Range: TAG\r\nRange: bytes=0-1", 206),
    ("If-Range: \"x\"\r\nRange: bytes=0-1", 200),
    ("If-Range: W/TAG\r\nRange: bytes=0-1", 200),
    ("If-Range: TAG, \"x\"\r\nRange: bytes=0-1", 200),
    ("If-Range: DATE\r\nRange: bytes=0-1", 206),
    ("If-Range: LATER\r\nRange: bytes=0-1", 200),
    ("If-Range: EARLIER\r\nRange: bytes=0-1", 200),
    ("If-Range: \"x\"\r\nRange: bytes=99-", 200),
    ("If-Range: TAG\r\nRange: bytes=99-", 416),
];

on_every_backend! {
    fn preconditions_are_evaluated_in_rfc_order<B>() {
        let tree = Tree::new(&[("a.txt", "0123456789")]);
        let server = tree.serve::<B>();
        let mut client = server.connect();
        let tag = get(&mut client, "/a.txt").header("etag").expect("ETag").to_owned();
        assert!(tag.starts_with('"'), "a hash of the content is a strong tag: {tag}");
        for (headers, status) in CASES {
            let headers = headers.replace("TAG", &tag).replace("DATE", LONG_AGO_TEXT);
            let headers = headers.replace("EARLIER", EARLIER).replace("LATER", LATER) + "\r\n";
            let response = request(&mut client, "GET", "/a.txt", &headers);
            assert_eq!(response.status, *status, "{headers}{response:?}");
            if !headers.contains("Range") {
                assert_eq!(request(&mut client, "HEAD", "/a.txt", &headers).status, *status, "HEAD, {headers}");
            }
        }
        // Preconditions are ignored if the response would not be 2xx anyway, and for OPTIONS (section 13.2.1).
        assert_eq!(request(&mut client, "GET", "/none", "If-None-Match: *\r\n").status, 404);
        assert_eq!(request(&mut client, "OPTIONS", "/a.txt", "If-Match: \"x\"\r\n").status, 204);
    }

    fn each_status_carries_the_required_headers<B>() {
        let tree = Tree::new(&[("a.txt", "0123456789")]);
        let server = tree.serve::<B>();
        let mut client = server.connect();
        let whole = get(&mut client, "/a.txt");
        assert_eq!(whole.header("last-modified"), Some(LONG_AGO_TEXT));
        assert_eq!(whole.header("accept-ranges"), Some("bytes"));
        let tag = whole.header("etag").expect("ETag");
        // RFC 9110 section 15.4.5: only the headers that a cache needs.
        let unchanged = request(&mut client, "GET", "/a.txt", &format!("If-None-Match: {tag}\r\n"));
        assert_eq!((unchanged.status, unchanged.header("etag")), (304, Some(tag)));
        for name in ["content-type", "content-length", "last-modified", "accept-ranges", "content-range"] {
            assert_eq!(unchanged.header(name), None, "{name}");
        }
        assert!(unchanged.header("date").is_some());
        let part = request(&mut client, "GET", "/a.txt", "Range: bytes=2-4\r\n");
        assert_eq!((part.status, part.text().as_str(), part.header("content-range")), (206, "234", Some("bytes 2-4/10")));
        for name in ["etag", "last-modified", "content-type", "accept-ranges", "x-content-type-options"] {
            assert_eq!(part.header(name), whole.header(name), "{name}");
        }
        let beyond = request(&mut client, "GET", "/a.txt", "Range: bytes=10-\r\n");
        assert_eq!((beyond.status, beyond.header("content-range")), (416, Some("bytes */10")));
        let failed = request(&mut client, "GET", "/a.txt", "If-Match: \"x\"\r\n");
        assert_eq!((failed.status, failed.header("content-type")), (412, Some("text/plain; charset=utf-8")));
    }

    fn a_recently_modified_large_file_has_a_weak_etag<B>() {
        let tree = Tree::new(&[]);
        // Larger than the files whose tags are hashes.
        std::fs::write(tree.path().join("new.txt"), "0123456789".repeat(5000)).expect("write file");
        let server = tree.serve::<B>();
        let mut client = server.connect();
        let response = get(&mut client, "/new.txt");
        let tag = response.header("etag").expect("ETag");
        assert!(tag.starts_with("W/\""), "{tag}");
        // A weak ETag is valid for If-None-Match but not for If-Range or If-Match.
        assert_eq!(request(&mut client, "GET", "/new.txt", &format!("If-None-Match: {tag}\r\n")).status, 304);
        let headers = format!("If-Range: {tag}\r\nRange: bytes=0-1\r\n");
        assert_eq!(request(&mut client, "GET", "/new.txt", &headers).status, 200);
        let date = response.header("last-modified").expect("Last-Modified");
        let headers = format!("If-Range: {date}\r\nRange: bytes=0-1\r\n");
        assert_eq!(request(&mut client, "GET", "/new.txt", &headers).status, 200);
        assert_eq!(request(&mut client, "GET", "/new.txt", &format!("If-Match: {tag}\r\n")).status, 412);
    }
}
