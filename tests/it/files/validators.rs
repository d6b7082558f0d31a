//! Entity tags and dates of files that are rebuilt with fixed times, copied, or dated wrongly.

use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::{LONG_AGO_TEXT, Tree, get, get_until, request};
use crate::harness::{Client, on_every_backend, retry, wait_for};

fn set_mtime(path: &Path, seconds: u64) {
    let file = std::fs::File::options().write(true).open(path).expect("open file");
    file.set_modified(UNIX_EPOCH + Duration::from_secs(seconds)).expect("set mtime");
}

fn tag(client: &mut Client, path: &str) -> String {
    request(client, "HEAD", path, "").header("etag").expect("ETag").to_owned()
}

/// Returns the status of a conditional request for a file that the client has.
fn revalidate(client: &mut Client, path: &str, tag: &str) -> u16 {
    request(client, "GET", path, &format!("If-None-Match: {tag}\r\n")).status
}

/// Waits until a file that is changed from now on gets another ctime than one changed before: the kernel advances the
/// time of files in ticks of up to 10 ms.
fn wait_for_ctime_tick(directory: &std::path::Path) {
    let probe = directory.join("probe");
    let stamp = || {
        std::fs::write(&probe, "x").expect("write");
        std::fs::metadata(&probe).and_then(|metadata| metadata.modified()).expect("an mtime")
    };
    let first = stamp();
    wait_for("the time of files does not advance", || stamp() != first);
    std::fs::remove_file(&probe).expect("remove");
}

on_every_backend! {
    fn a_small_file_has_the_tag_of_its_content<B>() {
        if cfg!(windows) {
            return println!("skipped on Windows: no ctime");
        }
        let tree = Tree::new(&[]);
        let server = tree.serve::<B>();
        let mut client = server.connect();
        // The second is the earliest date of a zip archive; the last is the size limit of small files.
        for (seconds, len) in [(1, 30), (315_532_800, 30), (1_700_000_000, 30), (1, 32 * 1024)] {
            let name = format!("{seconds}-{len}.html");
            let path = tree.write(&name, "1".repeat(len));
            set_mtime(&path, seconds);
            let old = tag(&mut client, &format!("/{name}"));
            assert!(old.starts_with('"'), "a hash of the content is a strong tag: {old}");
            assert_eq!(revalidate(&mut client, &format!("/{name}"), &old), 304);
            set_mtime(&tree.write(&name, "2".repeat(len)), seconds);
            get_until(&mut client, &format!("/{name}"), |response| response.body[0] == b'2');
            assert_eq!(revalidate(&mut client, &format!("/{name}"), &old), 200, "{name}");
            let new = tag(&mut client, &format!("/{name}"));
            assert_eq!(revalidate(&mut client, &format!("/{name}"), &new), 304, "{name}");
        }
    }

    fn copies_of_a_tree_have_equal_tags<B>() {
        let (one, two) = (Tree::new(&[]), Tree::new(&[]));
        for len in [0, 500, 20_000, 300_000] {
            one.write(&len.to_string(), vec![b'x'; len]);
            two.write(&len.to_string(), vec![b'x'; len]);
        }
        let (one, two) = (one.serve::<B>(), two.serve::<B>());
        let (mut one, mut two) = (one.connect(), two.connect());
        for len in ["0", "500", "20000", "300000"] {
            let tag = tag(&mut one, &format!("/{len}"));
            assert_eq!(revalidate(&mut two, &format!("/{len}"), &tag), 304, "{len}");
        }
        let tag = tag(&mut one, "/300000");
        let part = request(&mut two, "GET", "/300000", &format!("Range: bytes=1000-\r\nIf-Range: {tag}\r\n"));
        assert_eq!((part.status, part.body.len()), (206, 299_000), "a download can be resumed at the other server");
    }

    fn a_large_file_that_changes_under_the_same_mtime_gets_another_tag<B>() {
        if cfg!(windows) {
            return println!("skipped on Windows: no ctime");
        }
        let tree = Tree::new(&[]);
        let server = tree.serve::<B>();
        let mut client = server.connect();
        for (name, seconds) in [("nix", 1), ("zip", 315_532_800), ("fixed", 1_700_000_000)] {
            let path = tree.write(name, "1".repeat(50_000));
            set_mtime(&path, seconds);
            wait_for_ctime_tick(&tree.path());
            let name = format!("/{name}");
            let old = tag(&mut client, &name);
            let new = tree.write("new", "2".repeat(50_000));
            set_mtime(&new, seconds);
            std::fs::rename(new, &path).expect("rename");
            get_until(&mut client, &name, |response| response.body[0] == b'2');
            let response = request(&mut client, "GET", &name, &format!("If-None-Match: {old}\r\n"));
            assert_eq!((response.status, response.header("last-modified")), (200, None), "{name}");
            let tag = tag(&mut client, &name);
            assert_eq!(revalidate(&mut client, &name, &tag), 304, "{name}");
        }
    }

    fn a_small_file_that_changes_under_the_same_mtime_has_no_date<B>() {
        if cfg!(windows) {
            return println!("skipped on Windows: no ctime");
        }
        let tree = Tree::new(&[]);
        let path = tree.write("app.js", "11");
        set_mtime(&path, 1_700_000_000);
        wait_for_ctime_tick(&tree.path());
        let server = tree.serve::<B>();
        let mut client = server.connect();
        let date = request(&mut client, "GET", "/app.js", "").header("last-modified").expect("a date").to_owned();
        let since = format!("If-Modified-Since: {date}\r\n");
        assert_eq!(request(&mut client, "GET", "/app.js", &since).status, 304);
        let new = tree.write("new", "22");
        set_mtime(&new, 1_700_000_000);
        std::fs::rename(new, &path).expect("rename");
        let response = get_until(&mut client, "/app.js", |response| response.body == b"22");
        assert_eq!(response.header("last-modified"), None);
        assert_eq!(request(&mut client, "GET", "/app.js", &since).status, 200);
    }

    fn meaningless_dates_are_not_sent<B>() {
        let tree = Tree::new(&[("normal", "x")]);
        for (name, seconds) in [("a", 0), ("b", 1), ("c", 2)] {
            set_mtime(&tree.write(name, "x"), seconds);
            set_mtime(&tree.write(&format!("{name}-large"), "x".repeat(50_000)), seconds);
        }
        let server = tree.serve::<B>();
        let mut client = server.connect();
        for path in ["/a", "/a-large", "/b", "/b-large"] {
            assert_eq!(get(&mut client, path).header("last-modified"), None, "{path}");
        }
        for path in ["/c", "/c-large"] {
            assert_eq!(get(&mut client, path).header("last-modified"), Some("Thu, 01 Jan 1970 00:00:02 GMT"), "{path}");
        }
        assert_eq!(get(&mut client, "/normal").header("last-modified"), Some(LONG_AGO_TEXT));
    }

    fn a_date_in_the_future_is_replaced_with_a_stable_one<B>() {
        if cfg!(windows) {
            return println!("skipped on Windows: no ctime");
        }
        let tree = Tree::new(&[]);
        for (name, len) in [("small", 500), ("large", 50_000)] {
            set_mtime(&tree.write(name, "x".repeat(len)), 4_102_444_800);
        }
        let server = tree.serve::<B>();
        let mut client = server.connect();
        for path in ["/small", "/large"] {
            let first = get(&mut client, path);
            let date = first.header("last-modified").expect("Last-Modified").to_owned();
            let parsed = httpdate::parse_http_date(&date).expect("a date");
            assert!(parsed <= SystemTime::now(), "{date}");
            // The tag becomes strong when a later change must have another ctime.
            let resumed = get_until_resumed(&mut client, path);
            assert_eq!(resumed.header("last-modified"), Some(date.as_str()), "{path}");
            assert_eq!(request(&mut client, "GET", path, &format!("If-Modified-Since: {date}\r\n")).status, 304);
        }
    }

    fn a_304_repeats_the_tag_of_the_compressed_200<B>() {
        let tree = Tree::new(&[]);
        tree.write("app.js", "let x = 1;\n".repeat(5000));
        tree.write("small.js", "let x = 1;\n");
        tree.write("page.html", "<p>text</p>\n".repeat(300));
        tree.write("image.png", vec![0; 5000]);
        let files = serverd::Files::new(tree.path()).expect("open directory");
        let server = crate::harness::serve::<B, _>(move || {
            let pool = serverd::Pool::new(1, 64).expect("threads");
            serverd::HttpServer::with(serverd::layers::compress(files, pool))
        });
        let mut client = server.connect();
        for (path, compressed) in [("/app.js", true), ("/page.html", true), ("/small.js", false), ("/image.png", false)] {
            for coding in ["gzip", "zstd", "identity", "gzip;q=0"] {
                let accept = format!("Accept-Encoding: {coding}\r\n");
                let response = request(&mut client, "GET", path, &accept);
                let tag = response.header("etag").expect("ETag");
                let is_compressed = compressed && matches!(coding, "gzip" | "zstd");
                assert_eq!(tag.starts_with("W/"), is_compressed, "{path} {coding}");
                let strong = tag.trim_start_matches("W/");
                for known in [strong, &format!("W/{strong}"), "*"] {
                    let headers = format!("{accept}If-None-Match: {known}\r\n");
                    let unchanged = request(&mut client, "GET", path, &headers);
                    assert_eq!((unchanged.status, unchanged.header("etag")), (304, Some(tag)), "{path} {coding} {known}");
                }
            }
        }
    }
}

/// Repeats a request for a part until it is answered with one.
fn get_until_resumed(client: &mut Client, path: &str) -> crate::harness::RawResponse {
    retry(|| {
        let headers = format!("Range: bytes=100-\r\nIf-Range: {}\r\n", tag(client, path));
        let response = request(client, "GET", path, &headers);
        if response.status == 206 { Ok(response) } else { Err(format!("{path}: {:?}", response.head)) }
    })
}
