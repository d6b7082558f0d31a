//! Unusual and hostile file names.

use super::{Tree, get};
use crate::harness::on_every_backend;

/// Percent-encodes all bytes except ASCII alphanumerics.
fn encoded(name: &[u8]) -> String {
    let encode = |byte: &u8| match byte {
        byte if byte.is_ascii_alphanumeric() => char::from(*byte).to_string(),
        byte => format!("%{byte:02x}"),
    };
    name.iter().map(encode).collect()
}

fn names() -> Vec<Vec<u8>> {
    let mut names: Vec<Vec<u8>> = [
        &b"with space.txt"[..],
        b"quote\".txt",
        b"apostrophe'.txt",
        b"<script>.html",
        b"100%.txt",
        b"%41.txt",
        b"%2e%2e",
        b"hash#.txt",
        b"question?.txt",
        b"new\nline.txt",
        b"carriage\r\nX: y",
        b"back\\slash.txt",
        b"colon:stream",
        b"semi;colon=1",
        b"amp&.txt",
        b"caf\xc3\xa9.txt",
        b"not-utf8-\xff\xfe",
        b"\x01\x7f",
        b"~",
        b"...",
        b"con",
        b"trailing.",
        b"trailing ",
    ]
    .map(<[u8]>::to_vec)
    .into();
    names.push(vec![b'l'; 255]);
    // macOS only accepts UTF-8.
    names.retain(|name| cfg!(target_os = "linux") || std::str::from_utf8(name).is_ok());
    names
}

on_every_backend! {
    fn every_file_name_is_served_percent_encoded<B>() {
        use std::os::unix::ffi::OsStrExt;
        let tree = Tree::new(&[]);
        for (at, name) in names().iter().enumerate() {
            let name = std::ffi::OsStr::from_bytes(name);
            std::fs::write(tree.path().join(name), at.to_string()).expect("write file");
            std::fs::create_dir(tree.path().join(format!("dir{at}"))).expect("create directory");
            std::fs::create_dir(tree.path().join(format!("dir{at}")).join(name)).expect("create directory");
        }
        let server = tree.serve_with::<B>(serverd::apps::files::Options::default().hidden(true));
        let mut client = server.connect();
        for (at, name) in names().iter().enumerate() {
            let path = encoded(name);
            for _ in 0..2 {
                assert_eq!(get(&mut client, &format!("/{path}")).text(), at.to_string(), "{path}");
            }
            // The redirect escapes the name: following it works, and it cannot inject headers.
            let response = get(&mut client, &format!("/dir{at}/{path}"));
            let location = response.header("location").expect("Location").to_owned();
            assert_eq!((response.status, response.header("x")), (301, None), "{path}");
            let name = location.strip_prefix("./").and_then(|rest| rest.strip_suffix('/')).expect("a relative reference");
            assert!(!name.contains('/'), "{location}");
            assert_eq!(get(&mut client, &format!("/dir{at}/{name}")).header("location"), Some(location.as_str()));
            assert_eq!(get(&mut client, &format!("/dir{at}/{name}/")).status, 200, "{location}");
        }
    }

    fn names_that_are_too_long_are_404<B>() {
        let tree = Tree::new(&[]);
        let server = tree.serve::<B>();
        let mut client = server.connect();
        for path in ["l".repeat(256), "l".repeat(8000), "l/".repeat(4000)] {
            assert_eq!(get(&mut client, &format!("/{path}")).status, 404);
        }
    }
}
