//! Private keys that the server has read are not served, whatever their files are called and wherever they are.

use serverd::apps::files::Options;
use serverd::tls::Certificate;

use super::{NAVIGATION, Tree, get, request};
use crate::harness::on_every_backend;

const CHAIN: &str = include_str!("../../tls/a.pem");
const KEY: &str = include_str!("../../tls/a.key");

/// Reads a private key, as a server does at its start and after a renewal.
fn load_key() {
    Certificate::from_pem(CHAIN.as_bytes(), KEY.as_bytes()).expect("a certificate and its key");
}

on_every_backend! {
    fn a_file_with_a_key_that_was_read_is_neither_served_nor_listed<B>() {
        load_key();
        let other = "x".repeat(KEY.len());
        let tree = Tree::new(&[
            ("k.pem.bak", KEY),
            ("sub/copy", KEY),
            ("sub/index.html", KEY),
            ("page.html", KEY),
            ("a.txt", "text"),
            ("a.txt.gz", KEY),
            ("404.html", KEY),
            ("same-length.pem", &other),
            ("chain.pem", CHAIN),
            ("padded.pem", &(KEY.to_owned() + "\n")),
        ]);
        std::fs::hard_link(tree.path().join("k.pem.bak"), tree.path().join("link")).expect("hard links");
        let server = tree.serve_with::<B>(Options::default().clean_urls(true));
        let mut client = server.connect();
        for path in ["/k.pem.bak", "/sub/copy", "/sub/index.html", "/page", "/page.html", "/link", "/404.html", "/none"] {
            for headers in ["", NAVIGATION, "Range: bytes=0-9\r\n"] {
                let response = request(&mut client, "GET", path, headers);
                assert!(response.status == 404 && !response.text().contains("BEGIN"), "{path}: {response:?}");
            }
        }
        assert_eq!(request(&mut client, "GET", "/a.txt", "Accept-Encoding: gzip\r\n").text(), "text");
        assert_eq!(get(&mut client, "/same-length.pem").text(), other);
        assert_eq!(get(&mut client, "/chain.pem").text(), CHAIN);
        let listing = get(&mut client, "/").text();
        assert!(listing.contains("same-length.pem") && listing.contains("chain.pem"), "{listing}");
        for name in ["k.pem.bak", "page.html", "a.txt.gz", "404.html", ">link"] {
            assert!(!listing.contains(name), "{name}: {listing}");
        }
        let listing = get(&mut client, "/sub/").text();
        assert!(!listing.contains("copy") && !listing.contains("index.html"), "{listing}");
    }

    fn a_key_is_not_served_without_a_cache_nor_through_symbolic_links<B>() {
        load_key();
        let tree = Tree::new(&[("k.pem.bak", KEY), ("a.txt", "text")]);
        std::fs::write(tree.outside().join("key"), KEY).expect("a writable directory");
        #[cfg(unix)]
        for (target, link) in [("k.pem.bak", "inside"), ("../key", "outside")] {
            std::os::unix::fs::symlink(target, tree.path().join(link)).expect("create symlink");
        }
        for follow in [false, true] {
            let mut options = Options::default().follow_symlinks(follow);
            options.cache_bytes_max = 0;
            let server = tree.serve_with::<B>(options);
            let mut client = server.connect();
            for path in ["/k.pem.bak", "/inside", "/outside"] {
                assert_eq!(get(&mut client, path).status, 404, "{path}");
            }
            let listing = get(&mut client, "/").text();
            assert!(listing.contains("a.txt") && !listing.contains("side") && !listing.contains(".bak"), "{listing}");
        }
    }

    fn the_key_of_an_authority_is_not_served_from_any_directory<B>() {
        let tree = Tree::new(&[
            ("ca-key.pem", "secret"),
            ("home/serverd/ca/ca-key.pem", "secret"),
            ("home/serverd/ca/ca.pem", "public"),
            ("sub/CA-KEY.PEM/CA-Key.pem", "secret"),
            ("sub/CA-KEY.PEM/my-ca-key.pem", "text"),
        ]);
        let server = tree.serve::<B>();
        let mut client = server.connect();
        for path in ["/ca-key.pem", "/home/serverd/ca/ca-key.pem", "/sub/CA-KEY.PEM/CA-Key.pem", "/ca%2dkey.pem"] {
            assert_eq!(get(&mut client, path).status, 404, "{path}");
        }
        assert_eq!(get(&mut client, "/home/serverd/ca/ca.pem").text(), "public");
        assert_eq!(get(&mut client, "/sub/CA-KEY.PEM/my-ca-key.pem").text(), "text");
        let listing = get(&mut client, "/home/serverd/ca/").text();
        assert!(listing.contains("ca.pem") && !listing.contains("ca-key.pem"), "{listing}");
    }
}
