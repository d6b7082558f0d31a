//! Files that change while they are being served.

use std::io::Read;

use super::{Tree, get, get_until, request};
use crate::harness::{Client, Random, on_every_backend};

on_every_backend! {
    fn changes_are_visible_within_a_second<B>() {
        if cfg!(windows) {
            // A change that preserves length and mtime is visible only in the ctime, which Windows does not have.
            // Also, an open file cannot be replaced with a directory of the same name there.
            return println!("skipped on Windows: no ctime");
        }
        let large = "x".repeat(100_000);
        let tree = Tree::new(&[("a.txt", "one"), ("large.txt", &large), ("gone.txt", "here"), ("dir/other.txt", "")]);
        let server = tree.serve::<B>();
        let mut client = server.connect();
        let before = get(&mut client, "/a.txt");
        assert_eq!(before.text(), "one");
        assert_eq!(get(&mut client, "/large.txt").body.len(), large.len());
        assert_eq!(get(&mut client, "/gone.txt").text(), "here");
        assert_ne!(get(&mut client, "/dir/").text(), "index");

        // Rewrite in place, replace by renaming, remove, and create.
        tree.write("a.txt", "two");
        std::fs::rename(tree.write("new", "y".repeat(200_000)), tree.path().join("large.txt")).expect("rename");
        std::fs::remove_file(tree.path().join("gone.txt")).expect("remove file");
        tree.write("dir/index.html", "index");

        assert_eq!(get(&mut client, "/dir/").text(), "index");
        let after = get_until(&mut client, "/a.txt", |response| response.text() == "two");
        // Length and mtime are unchanged, so that the mtime says nothing about the content any more.
        assert!(before.header("last-modified").is_some() && after.header("last-modified").is_none());
        let after = get_until(&mut client, "/large.txt", |response| response.body.len() == 200_000);
        assert!(after.body.iter().all(|&byte| byte == b'y'));
        get_until(&mut client, "/gone.txt", |response| response.status == 404);
        std::fs::remove_file(tree.path().join("a.txt")).expect("remove file");
        std::fs::create_dir(tree.path().join("a.txt")).expect("create directory");
        get_until(&mut client, "/a.txt", |response| response.status == 301);
    }

    fn without_a_cache_changes_are_visible_at_once<B>() {
        let tree = Tree::new(&[]);
        let options = serverd::apps::files::Options::default().cache_bytes_max(0);
        let server = tree.serve_with::<B>(options);
        let mut client = server.connect();
        for len in [20, 100_000] {
            for round in 0..10_u8 {
                let (old, new) = (vec![b'a' + round; len], vec![b'A' + round; len]);
                let path = tree.write("file", &old);
                let response = get(&mut client, "/file");
                assert!(response.body == old, "{len} {round}: rewritten in place: {response:?}");
                if cfg!(windows) && len > 1000 {
                    continue; // An open file cannot be replaced there.
                }
                std::fs::rename(tree.write("new", &new), &path).expect("rename");
                let response = get(&mut client, "/file");
                assert!(response.body == new, "{len} {round}: replaced: {response:?}");
                std::fs::remove_file(path).expect("remove file");
                assert_eq!(get(&mut client, "/file").status, 404, "{len} {round}: removed");
            }
        }
    }

    fn a_file_truncated_during_a_download_closes_the_connection_early<B>() {
        let tree = Tree::new(&[]);
        let path = tree.write("large.bin", vec![b'x'; 64 << 20]);
        let server = tree.serve::<B>();
        let mut client = server.connect();
        client.send("GET /large.bin HTTP/1.1\r\nHost: x\r\n\r\n");
        // The socket buffers are too small for the rest, so the server has not read all of the file yet.
        client.read(1000);
        std::fs::File::options().write(true).open(&path).expect("open file").set_len(1 << 20).expect("truncate file");
        let mut rest = Vec::new();
        // Both end of file and a reset are acceptable.
        let _ = client.socket.read_to_end(&mut rest);
        assert!(rest.len() < 63 << 20, "received {} bytes, more than the file still had", rest.len());
        // Other requests are still served.
        assert_eq!(request(&mut server.connect(), "HEAD", "/large.bin", "").status, 200);
    }

    fn a_file_removed_during_a_download_is_sent_completely<B>() {
        let tree = Tree::new(&[]);
        let bytes = Random::new(3).bytes(16 << 20);
        let path = tree.write("large.bin", &bytes);
        let server = tree.serve::<B>();
        let mut client = server.connect();
        client.send("GET /large.bin HTTP/1.1\r\nHost: x\r\n\r\n");
        let head = client.line();
        assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
        std::fs::remove_file(path).expect("remove file");
        while client.line() != "\r" {}
        assert!(client.read(bytes.len()) == bytes);
    }

    fn a_thousand_concurrent_downloads_are_byte_exact<B>() {
        crate::harness::raise_fd_limit();
        let tree = Tree::new(&[]);
        let bytes = Random::new(4).bytes(60_000);
        tree.write("large.bin", &bytes);
        let server = tree.serve::<B>();
        let mut clients: Vec<Client> = Vec::new();
        for _ in 0..1000 {
            // Send at once: a client that waited until all have connected might time out.
            let mut client = server.connect();
            client.send("GET /large.bin HTTP/1.1\r\nHost: x\r\n\r\n");
            clients.push(client);
        }
        for client in &mut clients {
            let response = client.response();
            assert!(response.status == 200 && response.body == bytes);
        }
    }
}
