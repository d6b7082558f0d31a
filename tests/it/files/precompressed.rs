//! Precompressed siblings of files.

use super::{Tree, request};
use crate::harness::on_every_backend;

on_every_backend! {
    fn a_precompressed_sibling_is_served_if_accepted<B>() {
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
        // Twice, to cover cache hits.
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
                let response = request(&mut client, "GET", path, &format!("Accept-Encoding: {accepted}\r\n"));
                assert_eq!((response.status, response.text().as_str()), (200, text), "{path} {accepted}");
                assert_eq!(response.header("content-encoding"), coding, "{path} {accepted}");
                assert_eq!(response.header("vary"), Some("Accept-Encoding"), "{path} {accepted}");
                let content_type = if path == "/dir/" { "text/html; charset=utf-8" } else { "text/javascript; charset=utf-8" };
                assert_eq!(response.header("content-type"), Some(content_type), "{path} {accepted}");
            }
        }
        let alone = request(&mut client, "GET", "/alone.txt", "Accept-Encoding: gzip\r\n");
        assert_eq!((alone.header("vary"), alone.text().as_str()), (None, "alone"));
        // Requested by its own name, the sibling is an ordinary gzip file.
        let direct = request(&mut client, "GET", "/app.js.gz", "Accept-Encoding: gzip\r\n");
        assert_eq!((direct.header("content-encoding"), direct.header("content-type")), (None, Some("application/gzip")));
    }

    fn an_outdated_or_empty_sibling_is_not_served<B>() {
        let tree = Tree::new(&[("old.js", "new"), ("old.js.gz", "old"), ("empty.js", "plain"), ("empty.js.br", ""), ("kept.js", "plain"), ("kept.js.gz", "gzip")]);
        let touch = |name: &str, seconds: u64| {
            let file = std::fs::File::options().write(true).open(tree.path().join(name)).expect("open file");
            file.set_modified(std::time::UNIX_EPOCH + std::time::Duration::from_secs(seconds)).expect("set mtime");
        };
        touch("old.js", 1_700_000_100);
        touch("old.js.gz", 1_700_000_099);
        let server = tree.serve::<B>();
        let mut client = server.connect();
        for (path, text, coding) in [("/old.js", "new", None), ("/empty.js", "plain", None), ("/kept.js", "gzip", Some("gzip"))] {
            let response = request(&mut client, "GET", path, "Accept-Encoding: gzip, br\r\n");
            assert_eq!((response.text().as_str(), response.header("content-encoding")), (text, coding), "{path}");
        }
        touch("kept.js", 1_700_000_100);
        crate::files::get_until(&mut client, "/kept.js", |response| response.header("vary").is_none());
    }

    fn each_representation_has_its_own_etag_and_ranges<B>() {
        let tree = Tree::new(&[("app.js", "plain text"), ("app.js.gz", "compressed")]);
        let server = tree.serve::<B>();
        let mut client = server.connect();
        let plain = request(&mut client, "GET", "/app.js", "");
        let gzip = request(&mut client, "GET", "/app.js", "Accept-Encoding: gzip\r\n");
        let (plain, gzip) = (plain.header("etag").expect("ETag"), gzip.header("etag").expect("ETag"));
        assert_ne!(plain, gzip);
        let headers = |tag: &str| format!("Accept-Encoding: gzip\r\nIf-None-Match: {tag}\r\n");
        assert_eq!(request(&mut client, "GET", "/app.js", &headers(plain)).status, 200);
        let unchanged = request(&mut client, "GET", "/app.js", &headers(gzip));
        assert_eq!((unchanged.status, unchanged.header("vary")), (304, Some("Accept-Encoding")));
        let part = request(&mut client, "GET", "/app.js", "Accept-Encoding: gzip\r\nRange: bytes=0-3\r\n");
        assert_eq!((part.status, part.text().as_str(), part.header("content-encoding")), (206, "comp", Some("gzip")));
    }
}
