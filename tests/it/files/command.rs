//! The commands `serverd files` and `serverd hash`, with their options and environment variables.

use std::io::{Read, Write};
use std::process::Stdio;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use super::{Tree, request};
use crate::process::{Running, backends, run, run_with, serverd};

const HASH: &str = "alice:$2y$05$nF4wGCaEtRacYiOVnrhaQeX.3xDjiQ/U/lAOzoim86wOywsVSaKAy";

fn tree() -> Tree {
    let tree = Tree::new(&[("index.html", "<p>hello")]);
    tree.write("long.txt", "a line that is sent again and again\n".repeat(1000));
    tree
}

fn basic(credentials: &str) -> String {
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
