//! Files that change while they are served.

use std::io::Read;

use super::{Tree, ask, get, get_until};
use crate::harness::{Client, Random, on_every_backend};

on_every_backend! {
    fn what_changes_is_seen_within_a_second<B>() {
        if cfg!(windows) {
            // A change that keeps length and time shows in the time of the inode's change, which Windows has not; and the
            // name of a file that somebody has open cannot be given to a directory.
            return println!("skipped on Windows: there is no time of the inode's change");
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

        // Written anew in place; replaced by a rename; removed; and there for the first time.
        tree.write("a.txt", "two");
        std::fs::rename(tree.write("new", "y".repeat(200_000)), tree.path().join("large.txt")).expect("own");
        std::fs::remove_file(tree.path().join("gone.txt")).expect("own");
        tree.write("dir/index.html", "index");

        assert_eq!(get(&mut client, "/dir/").text(), "index");
        let after = get_until(&mut client, "/a.txt", |answer| answer.text() == "two");
        // The same length and time; what tells them apart is when the inode was changed.
        assert_eq!(after.field("last-modified"), before.field("last-modified"));
        let after = get_until(&mut client, "/large.txt", |answer| answer.body.len() == 200_000);
        assert!(after.body.iter().all(|&byte| byte == b'y'));
        get_until(&mut client, "/gone.txt", |answer| answer.status == 404);
        std::fs::remove_file(tree.path().join("a.txt")).expect("own");
        std::fs::create_dir(tree.path().join("a.txt")).expect("own");
        get_until(&mut client, "/a.txt", |answer| answer.status == 301);
    }

    fn a_file_that_shrinks_under_way_ends_the_connection_short<B>() {
        let tree = Tree::new(&[]);
        let path = tree.write("large.bin", vec![b'x'; 64 << 20]);
        let server = tree.serve::<B>();
        let mut client = server.connect();
        client.send("GET /large.bin HTTP/1.1\r\nHost: x\r\n\r\n");
        // Some of it comes; the rest is more than the sockets hold.
        client.read(1000);
        std::fs::File::options().write(true).open(&path).expect("own").set_len(1 << 20).expect("own");
        let mut rest = Vec::new();
        // A reset is an end as well.
        let _ = client.socket.read_to_end(&mut rest);
        assert!(rest.len() < 63 << 20, "not made up: {}", rest.len());
        // Others are served as before.
        assert_eq!(ask(&mut server.connect(), "HEAD", "/large.bin", "").status, 200);
    }

    fn a_file_that_is_removed_under_way_is_sent_to_its_end<B>() {
        let tree = Tree::new(&[]);
        let bytes = Random::new(3).bytes(16 << 20);
        let path = tree.write("large.bin", &bytes);
        let server = tree.serve::<B>();
        let mut client = server.connect();
        client.send("GET /large.bin HTTP/1.1\r\nHost: x\r\n\r\n");
        let head = client.line();
        assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
        std::fs::remove_file(path).expect("own");
        while client.line() != "\r" {}
        assert!(client.read(bytes.len()) == bytes);
    }

    fn a_thousand_downloads_at_once_are_right_to_the_byte<B>() {
        crate::harness::raise_descriptor_limit();
        let tree = Tree::new(&[]);
        let bytes = Random::new(4).bytes(60_000);
        tree.write("large.bin", &bytes);
        let server = tree.serve::<B>();
        let mut clients: Vec<Client> = Vec::new();
        for _ in 0..1000 {
            // Who is silent until all are there may be so for too long.
            let mut client = server.connect();
            client.send("GET /large.bin HTTP/1.1\r\nHost: x\r\n\r\n");
            clients.push(client);
        }
        for client in &mut clients {
            let answer = client.answer();
            assert!(answer.status == 200 && answer.body == bytes);
        }
    }
}
