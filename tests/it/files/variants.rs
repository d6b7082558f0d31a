//! Files that are there in compressed form too.

use super::{Tree, ask};
use crate::harness::on_every_backend;

on_every_backend! {
    fn a_compressed_sibling_is_sent_to_who_takes_it<B>() {
        let tree = Tree::new(&[
            ("app.js", "plain"),
            ("app.js.br", "br"),
            ("app.js.gz", "gzip"),
            ("dir/index.html", "index"),
            ("dir/index.html.zst/", ""),
            ("dir/index.html.gz", "index gzip"),
            ("alone.txt", "alone"),
            ("alone.gz", "not its sibling"),
        ]);
        let server = tree.serve::<B>();
        let mut client = server.connect();
        // Twice, so that what is remembered is asked for as well.
        for _ in 0..2 {
            for (path, accepted, coding, text) in [
                ("/app.js", "gzip, br", Some("br"), "br"),
                ("/app.js", "gzip, br;q=0.5", Some("gzip"), "gzip"),
                ("/app.js", "zstd", None, "plain"),
                ("/app.js", "", None, "plain"),
                ("/app.js", "identity;q=0, deflate", None, "plain"),
                ("/app%2ejs", "br", Some("br"), "br"),
                ("/dir/", "gzip, zstd", Some("gzip"), "index gzip"),
            ] {
                let answer = ask(&mut client, "GET", path, &format!("Accept-Encoding: {accepted}\r\n"));
                assert_eq!((answer.status, answer.text().as_str()), (200, text), "{path} {accepted}");
                assert_eq!(answer.field("content-encoding"), coding, "{path} {accepted}");
                assert_eq!(answer.field("vary"), Some("Accept-Encoding"), "{path} {accepted}");
                let content_type = if path == "/dir/" { "text/html; charset=utf-8" } else { "text/javascript; charset=utf-8" };
                assert_eq!(answer.field("content-type"), Some(content_type), "{path} {accepted}");
            }
        }
        let alone = ask(&mut client, "GET", "/alone.txt", "Accept-Encoding: gzip\r\n");
        assert_eq!((alone.field("vary"), alone.text().as_str()), (None, "alone"));
        // Asked for by its own name it is itself.
        let direct = ask(&mut client, "GET", "/app.js.gz", "Accept-Encoding: gzip\r\n");
        assert_eq!((direct.field("content-encoding"), direct.field("content-type")), (None, Some("application/gzip")));
    }

    fn each_form_has_a_tag_of_its_own_and_ranges<B>() {
        let tree = Tree::new(&[("app.js", "plain text"), ("app.js.gz", "compressed")]);
        let server = tree.serve::<B>();
        let mut client = server.connect();
        let plain = ask(&mut client, "GET", "/app.js", "");
        let gzip = ask(&mut client, "GET", "/app.js", "Accept-Encoding: gzip\r\n");
        let (plain, gzip) = (plain.field("etag").expect("a tag"), gzip.field("etag").expect("a tag"));
        assert_ne!(plain, gzip);
        let fields = |tag: &str| format!("Accept-Encoding: gzip\r\nIf-None-Match: {tag}\r\n");
        assert_eq!(ask(&mut client, "GET", "/app.js", &fields(plain)).status, 200);
        let unchanged = ask(&mut client, "GET", "/app.js", &fields(gzip));
        assert_eq!((unchanged.status, unchanged.field("vary")), (304, Some("Accept-Encoding")));
        let part = ask(&mut client, "GET", "/app.js", "Accept-Encoding: gzip\r\nRange: bytes=0-3\r\n");
        assert_eq!((part.status, part.text().as_str(), part.field("content-encoding")), (206, "comp", Some("gzip")));
    }
}
