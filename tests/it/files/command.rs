//! The commands `serverd files` and `serverd hash`, with their options and environment variables.

use std::io::{Read, Write};
use std::process::Stdio;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use super::{Tree, request};
use crate::process::{Running, backends, run, run_with, serverd};

pub(super) const HASH: &str = "alice:$2y$05$nF4wGCaEtRacYiOVnrhaQeX.3xDjiQ/U/lAOzoim86wOywsVSaKAy";

fn tree() -> Tree {
    let tree = Tree::new(&[("index.html", "<p>hello")]);
    tree.write("long.txt", "a line that is sent again and again\n".repeat(1000));
    tree
}

pub(super) fn basic(credentials: &str) -> String {
    format!("Authorization: Basic {}\r\n", STANDARD.encode(credentials))
}

#[test]
fn all_options_can_be_combined() {
    let tree = tree();
    let root = tree.path().display().to_string();
    for backend in backends() {
        let server = Running::start(&[
            "files",
            &root,
            "-p",
            "0",
            "-b",
            backend,
            "--cache",
            "1h",
            "--compress",
            "--cors",
            "--spa",
            "index.html",
            "--clean-urls",
            "--type",
            "txt=text/x-text",
            "--header",
            "X-Frame-Options: DENY",
            "--header",
            "Cache-Control: private",
            "--auth",
            HASH,
        ]);
        let mut client = server.connect();
        let refused = request(&mut client, "GET", "/long.txt", "Accept-Encoding: gzip\r\n");
        assert_eq!((refused.status, refused.header("access-control-allow-origin")), (401, Some("*")));
        assert_eq!(refused.header("x-frame-options"), Some("DENY"));
        let headers = format!("{}Accept-Encoding: gzip\r\n", basic("alice:wonderland"));
        let response = request(&mut client, "GET", "/long.txt", &headers);
        assert_eq!((response.status, response.header("content-encoding")), (200, Some("gzip")));
        assert_eq!(response.header("content-type"), Some("text/x-text; charset=utf-8"));
        assert_eq!(response.header("cache-control"), Some("private"), "replaces the server's own");
        assert_eq!(response.head.matches("Cache-Control").count(), 1);
        let mut text = String::new();
        flate2::read::GzDecoder::new(&*response.body).read_to_string(&mut text).expect("gzip");
        assert!(text == "a line that is sent again and again\n".repeat(1000));
        let range = request(&mut client, "GET", "/long.txt", &format!("{headers}Range: bytes=2-5\r\n"));
        assert_eq!((range.status, range.text().as_str(), range.header("content-encoding")), (206, "line", None));
        let page =
            request(&mut client, "GET", "/no/such", &format!("{}Accept: text/html\r\n", basic("alice:wonderland")));
        assert_eq!((page.status, page.text().as_str()), (200, "<p>hello"));
    }
}

#[test]
fn options_can_be_set_by_environment_variables_and_users_by_a_file() {
    let tree = tree();
    let users = tree.outside().join("users");
    std::fs::write(&users, format!("# members\n{HASH}\n")).expect("write file");
    for (name, value) in [("SERVERD_AUTH", format!("@{}", users.display())), ("SERVERD_AUTH", HASH.to_owned())] {
        let mut command = serverd(&["files", "-p", "0"]);
        command.env("SERVERD_DIR", tree.path()).env(name, value).env("SERVERD_HEADER", "X-A: 1\nX-B: 2");
        command.env("SERVERD_NO_LISTING", "true").env("SERVERD_CACHE", "no-store");
        let server = Running::spawn(&mut command);
        let mut client = server.connect();
        assert_eq!(request(&mut client, "GET", "/", &basic("alice:wrong")).status, 401);
        let response = request(&mut client, "GET", "/", &basic("alice:wonderland"));
        assert_eq!((response.header("x-a"), response.header("x-b")), (Some("1"), Some("2")));
        assert_eq!(response.header("cache-control"), Some("no-store"));
    }
}

/// A line of a password file for a user whose password is `secret`.
fn line(name: &str) -> String {
    format!("{name}:{}\n", bcrypt::hash("secret", 4).expect("hash"))
}

#[test]
fn a_password_file_is_read_again_when_it_changes_and_on_sighup() {
    let tree = tree();
    let users = tree.outside().join("users");
    for backend in backends() {
        std::fs::write(&users, line("alice") + &line("bert")).expect("write file");
        let auth = format!("@{}", users.display());
        let server =
            Running::start(&["files", &tree.path().display().to_string(), "-p", "0", "-b", backend, "--auth", &auth]);
        let mut client = server.connect();
        let mut status = |name: &str| request(&mut client, "GET", "/", &basic(&format!("{name}:secret"))).status;
        let mut wait_for = |name: &str, expected: u16| {
            crate::harness::wait_for(&format!("{backend}: {name} is not {expected}"), || status(name) == expected);
        };
        for (name, expected) in [("alice", 200), ("bert", 200), ("carol", 401)] {
            wait_for(name, expected);
        }
        // Alice's password is cached as correct, but she is removed.
        std::fs::write(&users, line("bert") + &line("carol")).expect("write file");
        for (name, expected) in [("alice", 401), ("carol", 200), ("bert", 200)] {
            wait_for(name, expected);
        }
        // A broken file changes nothing.
        std::fs::write(&users, "not a line of users\n").expect("write file");
        #[cfg(unix)]
        server.signal("HUP");
        std::thread::sleep(std::time::Duration::from_millis(1500));
        wait_for("carol", 200);
        std::fs::write(&users, line("alice")).expect("write file");
        #[cfg(unix)]
        server.signal("HUP");
        for (name, expected) in [("alice", 200), ("carol", 401)] {
            wait_for(name, expected);
        }
    }
}

#[test]
fn a_password_file_in_the_directory_is_not_served() {
    for backend in backends() {
        check_password_file(backend);
    }
}

fn check_password_file(backend: &str) {
    let tree = tree();
    let users = tree.write("users.txt", line("alice"));
    tree.write("sub/a.txt", "a");
    #[cfg(unix)]
    {
        use std::os::unix::fs::{PermissionsExt, symlink};
        symlink("users.txt", tree.path().join("link.txt")).expect("create symlink");
        symlink(&users, tree.path().join("sub/absolute.txt")).expect("create symlink");
        std::fs::hard_link(&users, tree.path().join("hard.txt")).expect("create link");
        std::fs::set_permissions(&users, std::fs::Permissions::from_mode(0o644)).expect("set permissions");
    }
    let auth = format!("@{}", users.display());
    let root = tree.path().display().to_string();
    let arguments = ["files", &root, "-p", "0", "-b", backend, "--auth", &auth, "--index", "none"];
    let mut command = serverd(&arguments);
    let log = tree.outside().join("log");
    command.stderr(std::fs::File::create(&log).expect("create file"));
    let server = Running::spawn(&mut command);
    let mut client = server.connect();
    let headers = basic("alice:secret");
    for path in ["/users.txt", "/link.txt", "/hard.txt", "/sub/absolute.txt", "/./users.txt", "/%75sers.txt"] {
        assert_eq!(request(&mut client, "GET", path, &headers).status, 404, "{backend}: {path}");
    }
    let listing = request(&mut client, "GET", "/?format=json", &headers).text();
    assert!(listing.contains("long.txt"), "{listing}");
    for name in ["users.txt", "link.txt", "hard.txt"] {
        assert!(!listing.contains(name), "{backend}: {name} in {listing}");
    }
    // An editor replaces the file.
    let new = tree.outside().join("new");
    std::fs::write(&new, line("alice")).expect("write file");
    std::fs::rename(new, &users).expect("rename");
    assert_eq!(request(&mut client, "GET", "/users.txt", &headers).status, 404, "{backend}");
    #[cfg(unix)]
    {
        server.signal("TERM");
        assert_eq!(server.wait().0, Some(0));
        let log = std::fs::read_to_string(log).expect("read log");
        assert!(log.contains("is in the served directory") && log.contains("can be read by all users"), "{log}");
    }
}

#[test]
fn flag_variables_accept_booleans_and_empty_variables_count_as_unset() {
    for value in ["1", "0", "yes", "no", "on", "off", "true", "false", ""] {
        let names = ["SERVERD_HIDDEN", "SERVERD_CORS", "SERVERD_COMPRESS", "SERVERD_NO_LISTING"];
        let (code, text) = run_with(&names.map(|name| (name, value)), &["files"]);
        assert_eq!(code, Some(1), "{value}: {text}");
    }
    let (code, text) = run_with(&[("SERVERD_HIDDEN", "perhaps")], &["files"]);
    assert_eq!((code, text.contains("variable SERVERD_HIDDEN\n")), (Some(2), true), "{text}");
    let (code, text) = run_with(&["SERVERD_DIR", "SERVERD_SPA", "SERVERD_AUTH"].map(|name| (name, "")), &["files"]);
    assert_eq!(code, Some(1), "{text}");
}

#[test]
fn invalid_options_are_rejected_with_advice() {
    for (arguments, code, advice) in [
        (&["files", "--header", "no colon"][..], 2, "'Name: value'"),
        (&["files", "--header", "Content-Length: 3"], 2, "the server sets this header itself"),
        (&["files", "--auth", "alice:wonderland"], 2, "serverd hash"),
        (&["files", "--cache", "soon"], 2, "no-store"),
        (&["files", "--type", "log"], 2, "EXT=TYPE"),
        (&["files", "--type", "log=plain"], 2, "log=text/plain"),
        (&["files", "--spa", "../index.html"], 2, "below the directory"),
        (&["files", "--auth", "@/no/such/file", "-p", "0"], 1, "cannot read /no/such/file"),
        (&["files", "src", "--spa", "nofile.html", "-p", "0"], 1, "--spa: cannot read nofile.html in src"),
        (&["files", ".", "--spa", "src", "-p", "0"], 1, "--spa: cannot read src in ."),
        (&["hash"], 2, "<NAME>"),
        (&["hash", "a:b"], 2, "contain a colon"),
        (&["hash", "alice"], 1, "no password given"),
    ] {
        let (status, message) = run(arguments);
        assert_eq!(status, Some(code), "{arguments:?}: {message}");
        assert!(message.contains(advice), "{arguments:?}: {message}");
    }
}

#[test]
fn a_hashed_password_grants_access() {
    let mut child = serverd(&["hash", "bob", "--cost", "4"]).stdin(Stdio::piped()).spawn().expect("spawn");
    child.stdin.take().expect("piped").write_all(b"a secret\n").expect("write to stdin");
    let line = String::from_utf8(child.wait_with_output().expect("wait for exit").stdout).expect("UTF-8");
    let tree = tree();
    let server = Running::start(&["files", &tree.path().display().to_string(), "-p", "0", "--auth", line.trim()]);
    let mut client = server.connect();
    assert_eq!(request(&mut client, "GET", "/", &basic("bob:a secret")).status, 200);
    assert_eq!(request(&mut client, "GET", "/", &basic("bob:a secret ")).status, 401);
}
