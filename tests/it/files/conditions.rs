//! Preconditions, with their precedence (RFC 9110 section 13.2.2), and what is told with each answer.

use super::{LONG_AGO_TEXT, Tree, ask, get};
use crate::harness::on_every_backend;

const EARLIER: &str = "Sat, 14 Nov 2020 11:59:59 GMT";
const LATER: &str = "Sat, 14 Nov 2020 12:00:01 GMT";

/// Fields of a request, where `TAG` stands for the tag of the file and `DATE` for its date, and the status.
const TABLE: &[(&str, u16)] = &[
    // If-Match, by the strong comparison.
    ("If-Match: TAG", 200),
    ("If-Match: \"x\", TAG", 200),
    ("If-Match: \"x\"\r\nIf-Match: TAG", 200),
    ("If-Match: *", 200),
    ("If-Match: \"x\"", 412),
    ("If-Match: W/TAG", 412),
    ("If-Match: ", 412),
    ("If-Match: nonsense", 412),
    // If-Unmodified-Since, where there is no If-Match.
    ("If-Unmodified-Since: DATE", 200),
    ("If-Unmodified-Since: LATER", 200),
    ("If-Unmodified-Since: EARLIER", 412),
    ("If-Unmodified-Since: nonsense", 200),
    ("If-Unmodified-Since: EARLIER\r\nIf-Unmodified-Since: EARLIER", 200),
    ("If-Match: TAG\r\nIf-Unmodified-Since: EARLIER", 200),
    ("If-Match: \"x\"\r\nIf-Unmodified-Since: LATER", 412),
    // If-None-Match, by the weak comparison.
    ("If-None-Match: TAG", 304),
    ("If-None-Match: W/TAG", 304),
    ("If-None-Match: \"x\" ,, TAG", 304),
    ("If-None-Match: \"x\"\r\nIf-None-Match: TAG", 304),
    ("If-None-Match: *", 304),
    ("If-None-Match: \"x\"", 200),
    ("If-None-Match: \"a,b\", \"c", 200),
    // If-Modified-Since, where there is no If-None-Match.
    ("If-Modified-Since: DATE", 304),
    ("If-Modified-Since: LATER", 304),
    ("If-Modified-Since: Tue, 01 Jan 2999 00:00:00 GMT", 304),
    ("If-Modified-Since: EARLIER", 200),
    ("If-Modified-Since: Saturday, 14-Nov-20 12:00:00 GMT", 304),
    ("If-Modified-Since: Sat Nov 14 12:00:00 2020", 304),
    ("If-Modified-Since: 14 Nov 2020", 200),
    ("If-None-Match: \"x\"\r\nIf-Modified-Since: DATE", 200),
    ("If-None-Match: TAG\r\nIf-Modified-Since: EARLIER", 304),
    // What fails comes before what is unchanged.
    ("If-Match: \"x\"\r\nIf-None-Match: TAG", 412),
    ("If-Match: TAG\r\nIf-None-Match: TAG", 304),
    ("If-Unmodified-Since: EARLIER\r\nIf-None-Match: TAG", 412),
    ("If-Unmodified-Since: LATER\r\nIf-Modified-Since: DATE", 304),
    // All of that comes before Range, and If-Range is of no use without one.
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
    fn preconditions_are_judged_in_their_order<B>() {
        let tree = Tree::new(&[("a.txt", "0123456789")]);
        let server = tree.serve::<B>();
        let mut client = server.connect();
        let tag = get(&mut client, "/a.txt").field("etag").expect("a tag").to_owned();
        assert!(tag.starts_with('"'), "strong, as the file is at rest: {tag}");
        for (fields, status) in TABLE {
            let fields = fields.replace("TAG", &tag).replace("DATE", LONG_AGO_TEXT);
            let fields = fields.replace("EARLIER", EARLIER).replace("LATER", LATER) + "\r\n";
            let answer = ask(&mut client, "GET", "/a.txt", &fields);
            assert_eq!(answer.status, *status, "{fields}{answer:?}");
            if !fields.contains("Range") {
                assert_eq!(ask(&mut client, "HEAD", "/a.txt", &fields).status, *status, "HEAD, {fields}");
            }
        }
        // Where there is nothing, and where nothing is read, they mean nothing (section 13.2.1).
        assert_eq!(ask(&mut client, "GET", "/none", "If-None-Match: *\r\n").status, 404);
        assert_eq!(ask(&mut client, "OPTIONS", "/a.txt", "If-Match: \"x\"\r\n").status, 204);
    }

    fn each_status_tells_what_it_has_to<B>() {
        let tree = Tree::new(&[("a.txt", "0123456789")]);
        let server = tree.serve::<B>();
        let mut client = server.connect();
        let whole = get(&mut client, "/a.txt");
        assert_eq!(whole.field("last-modified"), Some(LONG_AGO_TEXT));
        assert_eq!(whole.field("accept-ranges"), Some("bytes"));
        let tag = whole.field("etag").expect("a tag");
        // RFC 9110 section 15.4.5: what guides a cache, and nothing else.
        let unchanged = ask(&mut client, "GET", "/a.txt", &format!("If-None-Match: {tag}\r\n"));
        assert_eq!((unchanged.status, unchanged.field("etag")), (304, Some(tag)));
        for name in ["content-type", "content-length", "last-modified", "accept-ranges", "content-range"] {
            assert_eq!(unchanged.field(name), None, "{name}");
        }
        assert!(unchanged.field("date").is_some());
        let part = ask(&mut client, "GET", "/a.txt", "Range: bytes=2-4\r\n");
        assert_eq!((part.status, part.text().as_str(), part.field("content-range")), (206, "234", Some("bytes 2-4/10")));
        for name in ["etag", "last-modified", "content-type", "accept-ranges", "x-content-type-options"] {
            assert_eq!(part.field(name), whole.field(name), "{name}");
        }
        let beyond = ask(&mut client, "GET", "/a.txt", "Range: bytes=10-\r\n");
        assert_eq!((beyond.status, beyond.field("content-range")), (416, Some("bytes */10")));
        let failed = ask(&mut client, "GET", "/a.txt", "If-Match: \"x\"\r\n");
        assert_eq!((failed.status, failed.field("content-type")), (412, Some("text/plain; charset=utf-8")));
    }

    fn a_file_that_was_just_changed_has_a_weak_tag_until_it_rests<B>() {
        let tree = Tree::new(&[]);
        std::fs::write(tree.path().join("new.txt"), "0123456789").expect("a file");
        let server = tree.serve::<B>();
        let mut client = server.connect();
        let answer = get(&mut client, "/new.txt");
        let tag = answer.field("etag").expect("a tag");
        assert!(tag.starts_with("W/\""), "{tag}");
        // It does for reading again, and not for putting parts together.
        assert_eq!(ask(&mut client, "GET", "/new.txt", &format!("If-None-Match: {tag}\r\n")).status, 304);
        let fields = format!("If-Range: {tag}\r\nRange: bytes=0-1\r\n");
        assert_eq!(ask(&mut client, "GET", "/new.txt", &fields).status, 200);
        let date = answer.field("last-modified").expect("a date");
        let fields = format!("If-Range: {date}\r\nRange: bytes=0-1\r\n");
        assert_eq!(ask(&mut client, "GET", "/new.txt", &fields).status, 200);
        assert_eq!(ask(&mut client, "GET", "/new.txt", &format!("If-Match: {tag}\r\n")).status, 412);
    }
}
