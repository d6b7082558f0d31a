//! The served directory is removed, rebuilt, renamed, or reached through a symbolic link that is switched.

#[cfg(unix)]
use serverd::apps::files::Options;

#[cfg(unix)]
use super::request;
use super::{Tree, get, get_until};
use crate::harness::on_every_backend;
#[cfg(unix)]
use crate::process::{Running, backends};

on_every_backend! {
    fn a_removed_directory_is_503_and_its_successor_is_served<B>() {
        if cfg!(windows) {
            return println!("skipped on Windows: a directory with open handles keeps its name");
        }
        let tree = Tree::new(&[("index.html", "one"), ("sub/a.txt", "a")]);
        let server = tree.serve::<B>();
        let mut client = server.connect();
        assert_eq!(get(&mut client, "/").text(), "one");
        for round in 0..2 {
            std::fs::remove_dir_all(tree.path()).expect("remove directory");
            get_until(&mut client, "/", |response| response.status == 503);
            for path in ["/", "/?format=json", "/sub/", "/sub/a.txt"] {
                let response = get(&mut client, path);
                assert_eq!((response.status, response.header("retry-after")), (503, Some("1")), "{path}");
            }
            tree.write("index.html", format!("round {round}"));
            tree.write("b.txt", "b");
            get_until(&mut client, "/", |response| response.text() == format!("round {round}"));
            assert_eq!(get(&mut client, "/b.txt").text(), "b");
        }
        // The directory is renamed, and another one takes its place.
        std::fs::rename(tree.path(), tree.outside().join("old")).expect("rename");
        tree.write("index.html", "renamed");
        get_until(&mut client, "/", |response| response.text() == "renamed");
        assert_eq!(get(&mut client, "/b.txt").status, 404);
    }

    fn an_emptied_directory_is_never_listed_as_empty<B>() {
        let tree = Tree::new(&[("a.txt", "a")]);
        let server = tree.serve::<B>();
        let mut client = server.connect();
        assert_eq!(get(&mut client, "/").status, 200);
        std::fs::remove_file(tree.path().join("a.txt")).expect("remove file");
        for path in ["/", "/?format=json"] {
            assert_eq!(get(&mut client, path).status, 503, "{path}: a deployment is in progress");
        }
        tree.write("b.txt", "b");
        assert_eq!(get(&mut client, "/").status, 200);
        // A directory that was empty from the beginning, or for a long time, is listed.
        let empty = Tree::new(&[]);
        let server = empty.serve::<B>();
        assert_eq!(get(&mut server.connect(), "/").status, 200);
    }
}

#[cfg(unix)]
mod symlinks {
    use super::*;

    on_every_backend! {
        fn a_switched_symlink_is_followed_and_downloads_in_flight_continue<B>() {
            use std::os::unix::fs::symlink;
            for follow_symlinks in [false, true] {
                let tree = Tree::new(&[("r1/v.txt", "r1"), ("r2/v.txt", "r2")]);
                tree.write("r1/large.bin", vec![1; 16 << 20]);
                tree.write("r2/large.bin", vec![2; 16 << 20]);
                let current = tree.path().join("current");
                symlink("r1", &current).expect("create symlink");
                let options = Options::default().follow_symlinks(follow_symlinks);
                let files = serverd::Files::with_options(&current, options).expect("open directory");
                let server = crate::harness::serve::<B, _>(move || serverd::HttpServer::with(files));
                let mut client = server.connect();
                assert_eq!(get(&mut client, "/v.txt").text(), "r1");
                let mut download = server.connect();
                download.send("GET /large.bin HTTP/1.1\r\nHost: x\r\n\r\n");
                download.line();
                symlink("r2", tree.path().join("next")).expect("create symlink");
                std::fs::rename(tree.path().join("next"), &current).expect("rename");
                get_until(&mut client, "/v.txt", |response| response.text() == "r2");
                std::fs::remove_dir_all(tree.path().join("r1")).expect("remove directory");
                assert_eq!(get(&mut client, "/v.txt").text(), "r2");
                assert!(get(&mut client, "/large.bin").body == vec![2; 16 << 20]);
                while download.line() != "\r" {}
                assert!(download.read(16 << 20) == vec![1; 16 << 20], "the download that had begun is whole");
            }
        }
    }
}

/// On an idle server, the first request after a deployment must get the new directory: it waits for the check.
#[cfg(unix)]
#[test]
fn the_first_request_after_a_pause_gets_the_new_directory() {
    for backend in backends() {
        let tree = Tree::new(&[("v.txt", "old")]);
        let server = Running::start(&["files", &tree.path().display().to_string(), "-p", "0", "-b", backend]);
        assert_eq!(get(&mut server.connect(), "/v.txt").text(), "old");
        std::fs::rename(tree.path(), tree.outside().join("aside")).expect("rename");
        tree.write("v.txt", "new");
        // The time that must pass is the subject of this test.
        std::thread::sleep(std::time::Duration::from_millis(2100));
        assert_eq!(get(&mut server.connect(), "/v.txt").text(), "new", "{backend}");
    }
}

#[cfg(unix)]
#[test]
fn sighup_resolves_the_directory_again() {
    for backend in backends() {
        let tree = Tree::new(&[("v.txt", "old")]);
        let server = Running::start(&["files", &tree.path().display().to_string(), "-p", "0", "-b", backend]);
        let mut client = server.connect();
        assert_eq!(get(&mut client, "/v.txt").text(), "old");
        std::fs::rename(tree.path(), tree.outside().join("aside")).expect("rename");
        tree.write("v.txt", "new");
        server.signal("HUP");
        get_until(&mut client, "/v.txt", |response| response.text() == "new");
        assert_eq!(request(&mut client, "HEAD", "/v.txt", "").status, 200);
    }
}
