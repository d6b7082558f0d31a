//! What makes a site of a directory: pages of its own, compressed forms, caching; and programs that run in the browser.

use std::time::Duration;

use serverd::apps::files::{Caching, Options};

use super::{Tree, ask, get, get_until};
use crate::harness::on_every_backend;

/// What a browser says where somebody goes to a page, and where a page asks for its parts.
const PAGE: &str = "Accept: text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8\r\n";
const PART: &str = "Accept: */*\r\n";

fn site() -> Tree {
    Tree::new(&[
        ("index.html", "<p>the program"),
        ("404.html", "<p>nothing here"),
        ("app.js", "plain"),
        ("app.js.br", "brotli"),
        ("app.js.gz", "gzip"),
        ("app.js.zst", "zstd"),
        ("app.3f9c2b1a.css", "hashed"),
        ("picture.png", "png"),
        ("picture.png.gz", "never"),
        ("deep/page.txt", "deep"),
    ])
}

on_every_backend! {
    fn a_program_in_the_browser_has_every_page_and_no_other_file<B>() {
        let tree = site();
        let options = Options { spa: Some("index.html".into()), listing: false, ..Options::default() };
        let server = tree.serve_with::<B>(options);
        let mut client = server.connect();
        for path in ["/users/7", "/deep/", "/no/such.html", "/.git/config", "/%00", "/a/"] {
            let answer = ask(&mut client, "GET", path, PAGE);
            assert_eq!((answer.status, answer.text().as_str()), (200, "<p>the program"), "{path}");
            assert_eq!(answer.field("content-type"), Some("text/html; charset=utf-8"), "{path}");
            assert_eq!(answer.field("vary"), Some("Accept"), "{path}");
        }
        let tag = ask(&mut client, "HEAD", "/users/7", PAGE).field("etag").expect("a tag").to_owned();
        assert_eq!(ask(&mut client, "GET", "/users/8", &format!("{PAGE}If-None-Match: {tag}\r\n")).status, 304);
        for fields in [PART, "", "Accept: text/css,*/*;q=0.1\r\n", "Accept: text/html;q=0, */*\r\n", "Accept: image/*\r\n"] {
            let answer = ask(&mut client, "GET", "/assets/gone.js", fields);
            assert_eq!((answer.status, answer.field("vary")), (404, Some("Accept")), "{fields}");
        }
        assert_eq!(ask(&mut client, "GET", "/deep/page.txt", PAGE).text(), "deep");
        assert_eq!(ask(&mut client, "GET", "/app.js", PAGE).text(), "plain");
        assert_eq!(ask(&mut client, "POST", "/users/7", PAGE).status, 405);
    }

    fn a_missing_page_is_told_by_the_sites_own<B>() {
        let tree = site();
        let server = tree.serve::<B>();
        let mut client = server.connect();
        for _ in 0..2 {
            let answer = ask(&mut client, "GET", "/nowhere", PAGE);
            assert_eq!((answer.status, answer.text().as_str()), (404, "<p>nothing here"));
            assert_eq!(answer.field("vary"), Some("Accept"));
            assert_eq!(answer.field("content-type"), Some("text/html; charset=utf-8"));
            let validators = [answer.field("etag"), answer.field("last-modified"), answer.field("accept-ranges")];
            assert_eq!(validators, [None; 3], "it is not the page that was asked for");
        }
        assert_eq!(ask(&mut client, "HEAD", "/nowhere", PAGE).field("content-length"), Some("15"));
        let range = ask(&mut client, "GET", "/nowhere", &format!("{PAGE}Range: bytes=0-1\r\n"));
        assert_eq!((range.status, range.body.len()), (404, 15));
        assert_eq!(ask(&mut client, "GET", "/nowhere", PART).text(), "Not Found\n");
        let page = get(&mut client, "/404.html");
        assert_eq!((page.status, page.field("etag").is_some()), (200, true), "by its own name it is a page");
    }

    fn files_may_be_kept_as_long_as_was_said<B>() {
        let tree = site();
        for (caching, plain, hashed) in [
            (Caching::Revalidate, "no-cache", "no-cache"),
            (Caching::Never, "no-store", "no-store"),
            (Caching::For(Duration::from_secs(60)), "max-age=60", "max-age=31536000, immutable"),
        ] {
            let server = tree.serve_with::<B>(Options { caching, ..Options::default() });
            let mut client = server.connect();
            let answer = get(&mut client, "/index.html");
            assert_eq!(answer.field("cache-control"), Some(plain));
            let tag = format!("If-None-Match: {}\r\n", answer.field("etag").expect("a tag"));
            let unchanged = ask(&mut client, "GET", "/index.html", &tag);
            assert_eq!((unchanged.status, unchanged.field("cache-control")), (304, Some(plain)));
            assert_eq!(ask(&mut client, "HEAD", "/app.3f9c2b1a.css", "").field("cache-control"), Some(hashed));
            assert_eq!(get(&mut client, "/nowhere").field("cache-control"), None);
        }
    }

    fn a_compressed_form_is_sent_to_who_takes_it<B>() {
        let tree = site();
        let server = tree.serve::<B>();
        let mut client = server.connect();
        let plain = get(&mut client, "/app.js");
        assert_eq!((plain.text().as_str(), plain.field("vary")), ("plain", Some("Accept-Encoding")));
        let mut tags = vec![plain.field("etag").expect("a tag").to_owned()];
        for (accept, text, coding) in [
            ("gzip, deflate, br, zstd", "brotli", Some("br")),
            ("gzip, zstd", "zstd", Some("zstd")),
            ("gzip", "gzip", Some("gzip")),
            ("br;q=0.5, gzip;q=0.7", "gzip", Some("gzip")),
            ("br;q=0, *", "zstd", Some("zstd")),
            ("identity, br;q=0.5", "plain", None),
            ("gzip;q=0", "plain", None),
            ("", "plain", None),
            ("identity;q=0", "plain", None),
            ("*;q=0, gzip", "gzip", Some("gzip")),
        ] {
            let fields = format!("Accept-Encoding: {accept}\r\n");
            let answer = ask(&mut client, "GET", "/app.js", &fields);
            assert_eq!((answer.text().as_str(), answer.field("content-encoding")), (text, coding), "{accept}");
            assert_eq!(answer.field("content-type"), Some("text/javascript; charset=utf-8"), "{accept}");
            assert_eq!(answer.field("vary"), Some("Accept-Encoding"), "{accept}");
            let tag = answer.field("etag").expect("a tag").to_owned();
            let unchanged = ask(&mut client, "GET", "/app.js", &format!("{fields}If-None-Match: {tag}\r\n"));
            assert_eq!((unchanged.status, unchanged.field("vary")), (304, Some("Accept-Encoding")), "{accept}");
            let part = ask(&mut client, "GET", "/app.js", &format!("{fields}Range: bytes=1-2\r\n"));
            assert_eq!((part.status, part.text().as_str(), part.field("content-encoding")), (206, &text[1..3], coding));
            tags.push(tag);
        }
        tags.sort();
        tags.dedup();
        assert_eq!(tags.len(), 4, "each form has a tag of its own");
        let picture = ask(&mut client, "GET", "/picture.png", "Accept-Encoding: gzip\r\n");
        assert_eq!((picture.text().as_str(), picture.field("vary")), ("png", None));
        let itself = ask(&mut client, "GET", "/app.js.gz", "Accept-Encoding: gzip\r\n");
        assert_eq!((itself.field("content-encoding"), itself.field("content-type")), (None, Some("application/gzip")));
        let server = tree.serve_with::<B>(Options { precompressed: false, ..Options::default() });
        let answer = ask(&mut server.connect(), "GET", "/app.js", "Accept-Encoding: gzip, br\r\n");
        assert_eq!((answer.text().as_str(), answer.field("vary")), ("plain", None));
    }

    fn a_compressed_form_may_come_and_go<B>() {
        let tree = Tree::new(&[("app.js", "plain")]);
        let server = tree.serve::<B>();
        let mut client = server.connect();
        let fields = "Accept-Encoding: gzip\r\n";
        assert_eq!(ask(&mut client, "GET", "/app.js", fields).field("vary"), None);
        tree.write("app.js.gz", "gzip");
        get_until(&mut client, "/app.js", |answer| answer.field("vary").is_some());
        assert_eq!(ask(&mut client, "GET", "/app.js", fields).text(), "gzip");
        std::fs::remove_file(tree.path().join("app.js.gz")).expect("own");
        get_until(&mut client, "/app.js", |answer| answer.field("vary").is_none());
        assert_eq!(ask(&mut client, "GET", "/app.js", fields).text(), "plain");
    }
}
