//! Log lines of `serverd files`: each names the cause and, if there is one, the option.

use std::io::{BufRead, BufReader, Read};

use super::{Tree, request};
use crate::harness::retry;
use crate::process::{Running, backends};

/// Stops a server and returns the lines of its log that contain `text`.
fn log_lines(server: Running, text: &str) -> Vec<String> {
    server.stop_and_log().lines().filter(|line| line.contains(text)).map(str::to_owned).collect()
}

fn start(tree: &Tree, backend: &str, options: &[&str]) -> Running {
    let root = tree.path().display().to_string();
    Running::start(&[&["files", &root, "-p", "0", "-b", backend], options].concat())
}

#[test]
fn a_file_truncated_while_being_sent_is_logged_once_by_name() {
    for backend in backends() {
        let tree = Tree::new(&[]);
        let path = tree.write("large.bin", "");
        let file = std::fs::File::options().write(true).open(path).expect("open file");
        file.set_len(64 << 20).expect("sparse file");
        let server = start(&tree, backend, &[]);
        let mut client = server.connect();
        client.send("GET /large.bin HTTP/1.1\r\nHost: x\r\n\r\n");
        client.read(1000);
        file.set_len(1 << 20).expect("truncate file");
        // Both end of file and a reset are acceptable.
        let _ = client.socket.read_to_end(&mut Vec::new());
        let lines = log_lines(server, "truncated while being sent");
        let expected = if cfg!(target_os = "linux") { "root/large.bin was truncated" } else { "a file was truncated" };
        assert!(lines.len() == 1 && lines[0].contains(expected), "{backend}: {lines:?}");
    }
}

#[test]
fn a_refused_symbolic_link_is_logged_once_with_the_option() {
    for backend in backends() {
        let tree = Tree::new(&[("a.txt", "text")]);
        std::fs::write(tree.outside().join("secret"), "outside").expect("write file");
        for (target, link) in [("../secret", "relative"), ("/etc/hostname", "absolute")] {
            std::os::unix::fs::symlink(target, tree.path().join(link)).expect("create symlink");
        }
        let mut server = start(&tree, backend, &[]);
        let log = BufReader::new(server.child.stderr.take().expect("piped"));
        let (send, lines) = std::sync::mpsc::channel();
        let reader = std::thread::spawn(move || {
            for line in log.lines().map_while(Result::ok).filter(|line| line.contains("symbolic link")) {
                send.send(line).expect("the test waits");
            }
        });
        let mut client = server.connect();
        for path in ["/relative", "/absolute"] {
            // Requested by several clients at a time, of which one line is enough.
            let line = retry(|| {
                for path in [path, "/relative", "/a.txt", "/nowhere"] {
                    request(&mut client, "GET", path, "Accept: text/html\r\n");
                }
                lines.try_recv().map_err(|_| format!("{backend}: no line for {path}"))
            });
            assert!(line.contains(path) && line.contains("--follow-symlinks"), "{backend}: {line}");
        }
        server.signal("TERM");
        reader.join().expect("the reader ends");
        assert_eq!(lines.try_iter().next(), None, "{backend}: one line for each link");
    }
}

#[test]
fn a_file_that_may_not_be_read_is_logged_with_the_reason() {
    use std::os::unix::fs::PermissionsExt;
    for backend in backends() {
        let tree = Tree::new(&[("secret.txt", "text")]);
        let path = tree.path().join("secret.txt");
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o000)).expect("the file is ours");
        if std::fs::read(&path).is_ok() {
            eprintln!("SKIPPED: the user of this test may read every file");
            return;
        }
        let server = start(&tree, backend, &[]);
        let mut client = server.connect();
        for _ in 0..2 {
            assert_eq!(request(&mut client, "GET", "/secret.txt", "").status, 403);
        }
        let log = server.stop_and_log();
        assert_eq!(log.matches("/secret.txt: Permission denied").count(), 1, "{backend}: {log}");
    }
}

#[test]
fn a_page_that_can_no_longer_be_read_is_logged_once_with_the_reason() {
    for backend in backends() {
        let tree = Tree::new(&[("index.html", "<p>the app"), ("404.html", "<p>nothing here")]);
        let server = start(&tree, backend, &["--file-cache", "0", "--spa", "index.html"]);
        let mut client = server.connect();
        let mut pages = || {
            let page = |path: &str, client: &mut crate::harness::Client| {
                request(client, "GET", path, "Accept: text/html\r\nSec-Fetch-Dest: document\r\n").text()
            };
            let missing =
                request(&mut client, "GET", "/a.js", "Accept: text/html\r\nSec-Fetch-Dest: script\r\n").text();
            (page("/route", &mut client), missing)
        };
        let whole = ("<p>the app".to_owned(), "<p>nothing here".to_owned());
        assert_eq!(pages(), whole, "{backend}");
        for name in ["index.html", "404.html"] {
            std::fs::remove_file(tree.path().join(name)).expect("remove file");
            std::os::unix::fs::symlink("/etc/hostname", tree.path().join(name)).expect("create symlink");
        }
        for _ in 0..3 {
            assert_eq!(pages(), whole, "{backend}");
        }
        // Also when the pages are loaded again on request.
        server.signal("HUP");
        for _ in 0..3 {
            assert_eq!(pages(), whole, "{backend}");
        }
        let lines = log_lines(server, "cannot read the");
        assert_eq!(lines.len(), 2, "{backend}: {lines:?}");
        for (line, page) in lines.iter().zip(["error page 404.html", "--spa page index.html"]) {
            for text in [page, "leads out of the directory", "the previous one is served", "--follow-symlinks"] {
                assert!(line.contains(text), "{backend}: {line}");
            }
        }
    }
}

#[test]
fn a_broken_password_file_is_logged_with_the_reason() {
    for backend in backends() {
        let tree = Tree::new(&[("a.txt", "text")]);
        let users = tree.outside().join("users");
        std::fs::write(&users, super::command::HASH).expect("write file");
        let mut server = start(&tree, backend, &["--auth", &format!("@{}", users.display())]);
        std::fs::write(&users, "alice:wonderland\n").expect("write file");
        server.signal("HUP");
        let log = BufReader::new(server.child.stderr.take().expect("piped"));
        let mut lines = log.lines().map_while(Result::ok);
        let line = lines.find(|line| line.contains("previous users")).expect("a line");
        assert!(line.contains("not a bcrypt hash for user \"alice\""), "{backend}: {line}");
        let credentials = super::command::basic("alice:wonderland");
        assert_eq!(request(&mut server.connect(), "GET", "/a.txt", &credentials).status, 200, "{backend}");
    }
}
