//! Website features: error pages, precompressed files, Cache-Control and single-page apps.

use std::time::Duration;

use serverd::apps::files::{CacheControl, Options};

use super::{NAVIGATION, Tree, get, get_until, request, request_until};
use crate::harness::{on_every_backend, skipped_under_wine};

/// The Accept header that a browser sends when it loads a subresource.
const SUBRESOURCE: &str = "Accept: */*\r\n";

fn site() -> Tree {
    Tree::new(&[
        ("index.html", "<p>the app"),
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
    fn the_spa_page_is_the_fallback_for_navigation_only<B>() {
        let tree = site();
        let options = Options::default().spa("index.html".to_owned()).listing(false);
        let server = tree.serve_with::<B>(options);
        let mut client = server.connect();
        for path in ["/users/7", "/deep/", "/no/such.html", "/.git/config", "/%00", "/a/"] {
            let response = request(&mut client, "GET", path, NAVIGATION);
            assert_eq!((response.status, response.text().as_str()), (200, "<p>the app"), "{path}");
            assert_eq!(response.header("content-type"), Some("text/html; charset=utf-8"), "{path}");
            assert_eq!(response.header("vary"), Some("Accept, Sec-Fetch-Dest"), "{path}");
        }
        for headers in ["", SUBRESOURCE, "Accept: text/*\r\n", "Accept: */*;q=0.1\r\n", "Sec-Fetch-Dest: document\r\n"] {
            for method in ["GET", "HEAD"] {
                assert_eq!(request(&mut client, method, "/users/7", headers).status, 200, "{method} {headers}");
            }
        }
        for headers in [
            "Accept: application/json\r\n",
            "Accept: application/json, text/plain, */*\r\n",
            "Accept: image/avif,image/webp\r\n",
            "Accept: text/html;q=0, */*\r\n",
            "Accept: */*\r\nSec-Fetch-Dest: script\r\n",
            "Accept: */*\r\nSec-Fetch-Dest: empty\r\n",
        ] {
            assert_eq!(request(&mut client, "GET", "/users/7", headers).status, 404, "{headers}");
        }
        let tag = request(&mut client, "HEAD", "/users/7", NAVIGATION).header("etag").expect("ETag").to_owned();
        assert_eq!(request(&mut client, "GET", "/users/8", &format!("{NAVIGATION}If-None-Match: {tag}\r\n")).status, 304);
        for headers in [SUBRESOURCE, "", "Accept: text/css,*/*;q=0.1\r\n", "Accept: text/html;q=0, */*\r\n", "Accept: image/*\r\n"] {
            let response = request(&mut client, "GET", "/assets/gone.js", headers);
            assert_eq!((response.status, response.header("vary")), (404, Some("Accept, Sec-Fetch-Dest")), "{headers}");
        }
        assert_eq!(request(&mut client, "GET", "/deep/page.txt", NAVIGATION).text(), "deep");
        assert_eq!(request(&mut client, "GET", "/app.js", NAVIGATION).text(), "plain");
        assert_eq!(request(&mut client, "POST", "/users/7", NAVIGATION).status, 405);
    }

    fn a_broken_spa_page_leaves_the_previous_one<B>() {
        if skipped_under_wine("a directory gets a new creation time with each change, so that it appears to be replaced") {
            return;
        }
        let tree = site();
        let options = Options::default().spa("index.html".to_owned()).listing(false);
        let server = tree.serve_with::<B>(options);
        let mut client = server.connect();
        assert_eq!(request(&mut client, "GET", "/a", NAVIGATION).text(), "<p>the app");
        // Emptied, as during a build, then removed.
        tree.write("index.html", "");
        get_until(&mut client, "/index.html", |response| response.body.is_empty());
        assert_eq!(request(&mut client, "GET", "/b", NAVIGATION).text(), "<p>the app");
        std::fs::remove_file(tree.path().join("index.html")).expect("remove file");
        request_until(&mut client, "/index.html", "Accept: image/*\r\n", |response| response.status == 404);
        assert_eq!(request(&mut client, "GET", "/c", NAVIGATION).text(), "<p>the app");
        tree.write("index.html", "<p>built");
        get_until(&mut client, "/index.html", |response| response.text() == "<p>built");
        // The page was compared with its file within the current second, perhaps before the file was back.
        request_until(&mut client, "/d", NAVIGATION, |response| response.text() == "<p>built");
    }

    fn a_custom_404_page_is_served<B>() {
        let tree = site();
        let server = tree.serve::<B>();
        let mut client = server.connect();
        for _ in 0..2 {
            let response = request(&mut client, "GET", "/nowhere", NAVIGATION);
            assert_eq!((response.status, response.text().as_str()), (404, "<p>nothing here"));
            assert_eq!(response.header("vary"), Some("Accept"));
            assert_eq!(response.header("content-type"), Some("text/html; charset=utf-8"));
            let validators = [response.header("etag"), response.header("last-modified"), response.header("accept-ranges")];
            assert_eq!(validators, [None; 3], "an error page is not a representation of the requested path");
        }
        assert_eq!(request(&mut client, "HEAD", "/nowhere", NAVIGATION).header("content-length"), Some("15"));
        let range = request(&mut client, "GET", "/nowhere", &format!("{NAVIGATION}Range: bytes=0-1\r\n"));
        assert_eq!((range.status, range.body.len()), (404, 15));
        assert_eq!(request(&mut client, "GET", "/nowhere", SUBRESOURCE).text(), "Not Found\n");
        let page = get(&mut client, "/404.html");
        assert_eq!((page.status, page.header("etag").is_some()), (200, true), "an ordinary page at its own path");
    }

    fn cache_control_follows_the_option<B>() {
        let tree = site();
        for (cache_control, plain, hashed) in [
            (CacheControl::NoCache, "no-cache", "no-cache"),
            (CacheControl::NoStore, "no-store", "no-store"),
            (CacheControl::MaxAge(Duration::from_secs(60)), "max-age=60", "max-age=31536000, immutable"),
        ] {
            let server = tree.serve_with::<B>(Options::default().cache_control(cache_control));
            let mut client = server.connect();
            let response = get(&mut client, "/index.html");
            assert_eq!(response.header("cache-control"), Some(plain));
            let tag = format!("If-None-Match: {}\r\n", response.header("etag").expect("ETag"));
            let unchanged = request(&mut client, "GET", "/index.html", &tag);
            assert_eq!((unchanged.status, unchanged.header("cache-control")), (304, Some(plain)));
            assert_eq!(request(&mut client, "HEAD", "/app.3f9c2b1a.css", "").header("cache-control"), Some(hashed));
            assert_eq!(get(&mut client, "/nowhere").header("cache-control"), None);
        }
    }

    fn precompressed_files_are_negotiated<B>() {
        let tree = site();
        let server = tree.serve::<B>();
        let mut client = server.connect();
        let plain = get(&mut client, "/app.js");
        assert_eq!((plain.text().as_str(), plain.header("vary")), ("plain", Some("Accept-Encoding")));
        let mut tags = vec![plain.header("etag").expect("ETag").to_owned()];
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
            let headers = format!("Accept-Encoding: {accept}\r\n");
            let response = request(&mut client, "GET", "/app.js", &headers);
            assert_eq!((response.text().as_str(), response.header("content-encoding")), (text, coding), "{accept}");
            assert_eq!(response.header("content-type"), Some("text/javascript; charset=utf-8"), "{accept}");
            assert_eq!(response.header("vary"), Some("Accept-Encoding"), "{accept}");
            let tag = response.header("etag").expect("ETag").to_owned();
            let unchanged = request(&mut client, "GET", "/app.js", &format!("{headers}If-None-Match: {tag}\r\n"));
            assert_eq!((unchanged.status, unchanged.header("vary")), (304, Some("Accept-Encoding")), "{accept}");
            let part = request(&mut client, "GET", "/app.js", &format!("{headers}Range: bytes=1-2\r\n"));
            assert_eq!((part.status, part.text().as_str(), part.header("content-encoding")), (206, &text[1..3], coding));
            tags.push(tag);
        }
        tags.sort();
        tags.dedup();
        assert_eq!(tags.len(), 4, "each representation has its own ETag");
        let picture = request(&mut client, "GET", "/picture.png", "Accept-Encoding: gzip\r\n");
        assert_eq!((picture.text().as_str(), picture.header("vary")), ("png", None));
        let direct = request(&mut client, "GET", "/app.js.gz", "Accept-Encoding: gzip\r\n");
        assert_eq!((direct.header("content-encoding"), direct.header("content-type")), (None, Some("application/gzip")));
        let server = tree.serve_with::<B>(Options::default().precompressed(false));
        let response = request(&mut server.connect(), "GET", "/app.js", "Accept-Encoding: gzip, br\r\n");
        assert_eq!((response.text().as_str(), response.header("vary")), ("plain", None));
    }

    fn precompressed_files_may_appear_and_disappear<B>() {
        let tree = Tree::new(&[("app.js", "plain")]);
        let server = tree.serve::<B>();
        let mut client = server.connect();
        let headers = "Accept-Encoding: gzip\r\n";
        assert_eq!(request(&mut client, "GET", "/app.js", headers).header("vary"), None);
        tree.write("app.js.gz", "gzip");
        get_until(&mut client, "/app.js", |response| response.header("vary").is_some());
        assert_eq!(request(&mut client, "GET", "/app.js", headers).text(), "gzip");
        std::fs::remove_file(tree.path().join("app.js.gz")).expect("remove file");
        get_until(&mut client, "/app.js", |response| response.header("vary").is_none());
        assert_eq!(request(&mut client, "GET", "/app.js", headers).text(), "plain");
    }
}
