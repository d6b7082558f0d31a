//! Error pages: built-in ones for browsers, and the site's own.

#[cfg(target_os = "linux")]
use serverd::apps::files::Options;

use super::{NAVIGATION, Tree, get_until, request, request_until};
use crate::harness::{Client, RawResponse, on_every_backend};
#[cfg(target_os = "linux")]
use crate::process::{Running, backends};

/// Links to files of procfs that fail for every user: opening the first is not permitted, and reading the second fails.
#[cfg(target_os = "linux")]
fn add_failing_files(tree: &Tree) {
    for (target, link) in [("/proc/sys/net/ipv4/route/flush", "closed"), ("/proc/self/mem", "broken")] {
        assert!(std::path::Path::new(target).exists(), "{target}");
        std::os::unix::fs::symlink(target, tree.path().join(link)).expect("create symlink");
    }
}

/// Checks that a browser gets the built-in page of a status, and other programs get a line of text.
fn expect_built_in_page(client: &mut Client, path: &str, status: u16, reason: &str) {
    let page = request(client, "GET", path, NAVIGATION);
    assert_eq!((page.status, page.header("content-type")), (status, Some("text/html; charset=utf-8")), "{path}");
    let text = page.text();
    for part in [
        format!("<title>{reason}</title>"),
        format!("<b>{status}</b>"),
        "color-scheme:light dark".to_owned(),
        "@media(prefers-color-scheme:dark)".to_owned(),
    ] {
        assert!(text.contains(&part), "{path}: no {part} in {text}");
    }
    let policy = page.header("content-security-policy").unwrap_or_default();
    assert!(policy.starts_with("default-src 'none'; style-src 'sha256-"), "{path}: {policy}");
    assert_eq!(
        (page.header("x-content-type-options"), page.header("vary")),
        (Some("nosniff"), Some("Accept")),
        "{path}"
    );
    expect_retry_after(&page);
    let head = request(client, "HEAD", path, NAVIGATION);
    assert_eq!((head.status, head.header("content-length")), (status, Some(text.len().to_string().as_str())), "{path}");
    let line = request(client, "GET", path, "Accept: */*\r\n");
    assert_eq!((line.status, line.text()), (status, format!("{reason}\n")), "{path}");
    assert_eq!(line.header("vary"), Some("Accept"), "{path}");
    expect_retry_after(&line);
}

fn expect_retry_after(response: &RawResponse) {
    let expected = (response.status == 503).then_some("1");
    assert_eq!(response.header("retry-after"), expected, "{}", response.status);
}

on_every_backend! {
    fn a_missing_file_and_a_missing_directory_have_built_in_pages<B>() {
        let tree = Tree::new(&[("a.txt", "a")]);
        let server = tree.serve::<B>();
        let mut client = server.connect();
        expect_built_in_page(&mut client, "/nowhere", 404, "Not Found");
        if cfg!(windows) {
            return println!("skipped on Windows: a directory with open handles keeps its name");
        }
        // The listing of a directory that is being rebuilt, which is read on another thread.
        assert_eq!(request(&mut client, "GET", "/", NAVIGATION).status, 200);
        std::fs::remove_file(tree.path().join("a.txt")).expect("remove file");
        expect_built_in_page(&mut client, "/", 503, "Service Unavailable");
        std::fs::remove_dir(tree.path()).expect("remove directory");
        get_until(&mut client, "/a.txt", |response| response.status == 503);
        for path in ["/", "/a.txt"] {
            expect_built_in_page(&mut client, path, 503, "Service Unavailable");
        }
    }

    fn a_removed_custom_page_gives_way_to_the_built_in_one<B>() {
        let tree = Tree::new(&[("404.html", "<p>missing")]);
        let server = tree.serve::<B>();
        let mut client = server.connect();
        assert_eq!(request(&mut client, "GET", "/nowhere", NAVIGATION).text(), "<p>missing");
        // Emptied, as while it is being written: the previous one is kept.
        tree.write("404.html", "");
        get_until(&mut client, "/404.html", |response| response.body.is_empty());
        assert_eq!(request(&mut client, "GET", "/nowhere", NAVIGATION).text(), "<p>missing");
        tree.write("404.html", "<p>changed it");
        request_until(&mut client, "/nowhere", NAVIGATION, |response| response.text() == "<p>changed it");
        std::fs::remove_file(tree.path().join("404.html")).expect("remove file");
        let is_built_in = |response: &RawResponse| response.text().contains("<title>Not Found</title>");
        request_until(&mut client, "/nowhere", NAVIGATION, is_built_in);
    }
}

#[cfg(target_os = "linux")]
mod failing_files {
    use super::*;

    on_every_backend! {
        fn unreadable_files_have_built_in_pages<B>() {
            let tree = Tree::new(&[]);
            add_failing_files(&tree);
            let server = tree.serve_with::<B>(Options::default().follow_symlinks(true));
            let mut client = server.connect();
            expect_built_in_page(&mut client, "/closed", 403, "Forbidden");
            expect_built_in_page(&mut client, "/broken", 500, "Internal Server Error");
        }

        fn each_status_has_its_own_page<B>() {
            let tree = Tree::new(&[("403.html", "<p>closed"), ("404.html", "<p>missing"), ("50x.html", "<p>failed")]);
            add_failing_files(&tree);
            let server = tree.serve_with::<B>(Options::default().follow_symlinks(true));
            let mut client = server.connect();
            for round in 0..2 {
                for (path, status, text) in
                    [("/closed", 403, "<p>closed"), ("/nowhere", 404, "<p>missing"), ("/broken", 500, "<p>failed")]
                {
                    let page = request(&mut client, "GET", path, NAVIGATION);
                    assert_eq!((page.status, page.text().as_str()), (status, text), "{round} {path}");
                    assert_eq!(page.header("content-type"), Some("text/html; charset=utf-8"), "{path}");
                    assert_eq!((page.header("vary"), page.header("etag")), (Some("Accept"), None), "{path}");
                    let line = request(&mut client, "GET", path, "Accept: */*\r\n");
                    assert!(line.status == status && !line.text().contains("<p>"), "{path}: {line:?}");
                }
            }
            // The page of one status precedes that of several.
            tree.write("500.html", "<p>precise");
            let page = request(&mut client, "GET", "/broken", NAVIGATION);
            assert_eq!((page.status, page.text().as_str()), (500, "<p>precise"));
        }
    }
}

#[test]
#[cfg(target_os = "linux")]
fn the_custom_page_is_sent_while_no_file_can_be_opened() {
    use rustix::process::{Pid, Resource, Rlimit, prlimit};
    for backend in backends() {
        let tree = Tree::new(&[("50x.html", "<p>failed"), ("a.txt", "a")]);
        add_failing_files(&tree);
        let root = tree.path().display().to_string();
        let server = Running::start(&["files", &root, "-p", "0", "-b", backend, "--follow-symlinks"]);
        let mut client = server.connect();
        let page = request(&mut client, "GET", "/broken", NAVIGATION);
        assert_eq!((page.status, page.text().as_str()), (500, "<p>failed"), "{backend}");
        let pid = Pid::from_raw(server.child.id().try_into().expect("a process id"));
        let none = Rlimit { current: Some(0), maximum: Some(0) };
        prlimit(pid, Resource::Nofile, none).expect("set the limit");
        for round in 0..3 {
            if round > 0 {
                // The page is compared with its file again after a second.
                std::thread::sleep(std::time::Duration::from_millis(600));
            }
            let page = request(&mut client, "GET", "/a.txt", NAVIGATION);
            assert_eq!((page.status, page.text().as_str()), (503, "<p>failed"), "{backend} {round}");
            expect_retry_after(&page);
        }
    }
}
