//! Links, special files and files that may not be read: what is no regular file of the directory is not served, and
//! nothing of it holds up the loop.

use std::os::unix::fs::symlink;
use std::os::unix::net::UnixListener;
use std::path::Path;

use serverd::apps::files::Options;

use super::{Tree, get};
use crate::harness::on_every_backend;

/// A FIFO; macOS has another call for it.
pub(super) fn make_fifo(path: &Path) {
    let status = std::process::Command::new("mkfifo").arg(path).status();
    assert!(status.expect("mkfifo runs").success());
}

/// Made by root alone; the directory has none otherwise, which is 404 too.
#[cfg(target_os = "linux")]
fn make_device(path: &Path) -> std::io::Result<()> {
    use rustix::fs::{CWD, FileType, Mode, makedev, mknodat};
    Ok(mknodat(CWD, path, FileType::CharacterDevice, Mode::RUSR, makedev(1, 3))?)
}

#[cfg(not(target_os = "linux"))]
fn make_device(_: &Path) -> std::io::Result<()> {
    Err(std::io::ErrorKind::Unsupported.into())
}

on_every_backend! {
    fn links_are_followed_within_the_directory<B>() {
        let tree = Tree::new(&[("a.txt", "text"), ("sub/deep/b.txt", "deep")]);
        for (to, from) in [
            ("a.txt", "one"),
            ("one", "two"),
            ("../../a.txt", "sub/deep/up"),
            ("sub/deep", "short"),
            ("loop", "loop"),
            ("ping", "pong"),
            ("pong", "ping"),
            ("nowhere", "dangling"),
        ] {
            symlink(to, tree.path().join(from)).expect("a link");
        }
        let server = tree.serve::<B>();
        let mut client = server.connect();
        for (path, text) in [("/one", "text"), ("/two", "text"), ("/sub/deep/up", "text"), ("/short/b.txt", "deep")] {
            assert_eq!(get(&mut client, path).text(), text, "{path}");
        }
        for path in ["/loop", "/ping", "/pong/x", "/dangling"] {
            assert_eq!(get(&mut client, path).status, 404, "{path}");
        }
    }

    fn links_that_lead_out_are_followed_only_when_asked_to<B>() {
        let tree = Tree::new(&[("a.txt", "text")]);
        std::fs::write(tree.outside().join("other.txt"), "other").expect("a file");
        for (to, from) in [(Path::new("../other.txt"), "relative"), (&tree.outside().join("other.txt"), "absolute"), (Path::new(".."), "up")] {
            symlink(to, tree.path().join(from)).expect("a link");
        }
        let server = tree.serve::<B>();
        let mut client = server.connect();
        for path in ["/relative", "/absolute", "/up/other.txt", "/up/", "/up/root/a.txt"] {
            assert_eq!(get(&mut client, path).status, 404, "{path}");
        }
        let server = tree.serve_with::<B>(Options { follow_symlinks: true, ..Options::default() });
        let mut client = server.connect();
        for (path, text) in [("/relative", "other"), ("/absolute", "other"), ("/up/other.txt", "other"), ("/up/root/a.txt", "text")] {
            assert_eq!(get(&mut client, path).text(), text, "{path}");
        }
        for path in ["/../other.txt", "/%2e%2e/other.txt", "/..%2fother.txt"] {
            assert_eq!(get(&mut client, path).status, 404, "{path}");
        }
    }

    fn only_regular_files_are_served_and_nothing_waits<B>() {
        let tree = Tree::new(&[("a.txt", "text")]);
        make_fifo(&tree.path().join("fifo"));
        let _socket = UnixListener::bind(tree.path().join("socket")).expect("a socket");
        if let Err(error) = make_device(&tree.path().join("null")) {
            println!("without a device: {error}");
        }
        for options in [Options::default(), Options { follow_symlinks: true, ..Options::default() }] {
            let server = tree.serve_with::<B>(options);
            let mut client = server.connect();
            for path in ["/fifo", "/socket", "/null", "/fifo/", "/fifo/x"] {
                assert_eq!(get(&mut client, path).status, 404, "{path}");
            }
            assert_eq!(get(&mut client, "/a.txt").text(), "text");
        }
    }

    fn what_may_not_be_read_is_403<B>() {
        use std::os::unix::fs::PermissionsExt;
        let tree = Tree::new(&[("closed.txt", "text"), ("closed/a.txt", "text"), ("closed/index.html", "text")]);
        let server = tree.serve::<B>();
        let mut client = server.connect();
        if rustix::process::geteuid().is_root() {
            return println!("skipped: root may read everything");
        }
        for (name, mode) in [("closed.txt", 0), ("closed", 0)] {
            std::fs::set_permissions(tree.path().join(name), std::fs::Permissions::from_mode(mode)).expect("own");
        }
        for path in ["/closed.txt", "/closed/a.txt", "/closed/"] {
            assert_eq!(get(&mut client, path).status, 403, "{path}");
        }
        std::fs::set_permissions(tree.path().join("closed"), std::fs::Permissions::from_mode(0o700)).expect("own");
    }

    // Somebody exchanges a directory for a link that leads out, again and again, while files in it are asked for.
    fn a_directory_that_becomes_a_link_leads_nowhere<B>() {
        let tree = Tree::new(&[("swap/a.txt", "inside")]);
        std::fs::create_dir(tree.outside().join("swap")).expect("a directory");
        std::fs::write(tree.outside().join("swap/a.txt"), "outside").expect("a file");
        let (inside, aside) = (tree.path().join("swap"), tree.path().join("aside"));
        let server = tree.serve::<B>();
        std::thread::scope(|scope| {
            let asking = scope.spawn(|| {
                let mut client = server.connect();
                for at in 0..2000 {
                    // Each name is new to the cache.
                    let answer = get(&mut client, &format!("/swap/{}a.txt", "/".repeat(at % 50)));
                    assert!(answer.status == 404 || answer.text() == "inside", "{answer:?}");
                }
            });
            while !asking.is_finished() {
                std::fs::rename(&inside, &aside).expect("own");
                symlink("../swap", &inside).expect("a link");
                std::fs::remove_file(&inside).expect("own");
                std::fs::rename(&aside, &inside).expect("own");
            }
        });
    }
}
