//! Symbolic links, special files and unreadable files: only regular files in the directory are served, and no file
//! blocks the loop.

use std::os::unix::fs::symlink;
use std::os::unix::net::UnixListener;
use std::path::Path;

use serverd::apps::files::Options;

use super::{Tree, get};
use crate::harness::on_every_backend;

/// Creates a FIFO with mkfifo(1): macOS has no `mknodat`.
pub(super) fn make_fifo(path: &Path) {
    let status = std::process::Command::new("mkfifo").arg(path).status();
    assert!(status.expect("run mkfifo").success());
}

/// Creates a device node, which requires root. Without one, the path does not exist, which is a 404 as well.
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
    fn symlinks_within_the_directory_are_followed<B>() {
        let tree = Tree::new(&[("a.txt", "text"), ("sub/deep/b.txt", "deep")]);
        for (target, link) in [
            ("a.txt", "one"),
            ("one", "two"),
            ("../../a.txt", "sub/deep/up"),
            ("sub/deep", "short"),
            ("loop", "loop"),
            ("ping", "pong"),
            ("pong", "ping"),
            ("nowhere", "dangling"),
        ] {
            symlink(target, tree.path().join(link)).expect("create symlink");
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

    fn absolute_symlinks_within_the_directory_are_followed<B>() {
        let tree = Tree::new(&[("a.txt", "text"), ("sub/deep/b.txt", "deep")]);
        let root = tree.path();
        let canonical = root.canonicalize().expect("canonical path");
        std::fs::write(tree.outside().join("root-secret"), "outside").expect("write file");
        symlink("root", tree.outside().join("alias")).expect("create symlink");
        let alias = tree.outside().join("alias");
        for (target, link) in [
            (root.join("a.txt"), "file"),
            (canonical.join("sub"), "dir"),
            (root.join("dir/deep/../deep"), "chain"),
            ("../file".into(), "sub/relative"),
            (root.clone(), "self"),
            (tree.outside().join("root-secret"), "out"),
            (root.join("../root-secret"), "above"),
            (root.join("sub/../../root-secret"), "winding"),
            (alias.join("../root-secret"), "by-alias"),
            (root.join("loop"), "loop"),
            (root.join("pong"), "ping"),
            (root.join("ping"), "pong"),
            (root.join("nowhere"), "dangling"),
        ] {
            symlink(target, root.join(link)).expect("create symlink");
        }
        // At most eight absolute links are followed.
        symlink(root.join("a.txt"), root.join("link0")).expect("create symlink");
        for at in 1..9 {
            symlink(root.join(format!("link{}", at - 1)), root.join(format!("link{at}"))).expect("create symlink");
        }
        // The root is given as it is, and by way of a symbolic link.
        for directory in [&root, &alias] {
            let files = serverd::Files::new(directory).expect("open directory");
            let server = crate::harness::serve::<B, _>(move || serverd::HttpServer::with(files));
            let mut client = server.connect();
            for (path, text) in [("/dir/deep/b.txt", "deep"), ("/link0", "text")] {
                assert_eq!(get(&mut client, path).text(), text, "{path}");
            }
            for path in ["/out", "/above", "/winding", "/by-alias", "/loop", "/ping", "/dangling"] {
                let response = get(&mut client, path);
                assert!(response.status == 404 && !response.text().contains("outside"), "{path}");
            }
        }
        let server = tree.serve::<B>();
        let mut client = server.connect();
        for (path, text) in [
            ("/file", "text"),
            ("/chain/b.txt", "deep"),
            ("/sub/relative", "text"),
            ("/self/self/file", "text"),
            ("/link7", "text"),
        ] {
            assert_eq!(get(&mut client, path).text(), text, "{path}");
        }
        assert_eq!(get(&mut client, "/link8").status, 404);
        let listing = get(&mut client, "/?format=json").text();
        for (name, listed) in [("file", true), ("dir", true), ("self", true), ("out", false), ("above", false)] {
            assert_eq!(listing.contains(&format!("\"name\":\"{name}\"")), listed, "{name} in {listing}");
        }
    }

    fn symlinks_out_of_the_directory_are_followed_only_if_enabled<B>() {
        let tree = Tree::new(&[("a.txt", "text")]);
        std::fs::write(tree.outside().join("other.txt"), "other").expect("write file");
        for (target, link) in [(Path::new("../other.txt"), "relative"), (&tree.outside().join("other.txt"), "absolute"), (Path::new(".."), "up")] {
            symlink(target, tree.path().join(link)).expect("create symlink");
        }
        let server = tree.serve::<B>();
        let mut client = server.connect();
        for path in ["/relative", "/absolute", "/up/other.txt", "/up/", "/up/root/a.txt"] {
            assert_eq!(get(&mut client, path).status, 404, "{path}");
        }
        let server = tree.serve_with::<B>(Options::default().follow_symlinks(true));
        let mut client = server.connect();
        for (path, text) in [("/relative", "other"), ("/absolute", "other"), ("/up/other.txt", "other"), ("/up/root/a.txt", "text")] {
            assert_eq!(get(&mut client, path).text(), text, "{path}");
        }
        for path in ["/../other.txt", "/%2e%2e/other.txt", "/..%2fother.txt"] {
            assert_eq!(get(&mut client, path).status, 404, "{path}");
        }
    }

    fn only_regular_files_are_served_and_nothing_blocks<B>() {
        let tree = Tree::new(&[("a.txt", "text")]);
        make_fifo(&tree.path().join("fifo"));
        let _socket = UnixListener::bind(tree.path().join("socket")).expect("bind socket");
        if let Err(error) = make_device(&tree.path().join("null")) {
            println!("cannot create a device node: {error}");
        }
        for options in [Options::default(), Options::default().follow_symlinks(true)] {
            let server = tree.serve_with::<B>(options);
            let mut client = server.connect();
            for path in ["/fifo", "/socket", "/null", "/fifo/", "/fifo/x"] {
                assert_eq!(get(&mut client, path).status, 404, "{path}");
            }
            assert_eq!(get(&mut client, "/a.txt").text(), "text");
        }
    }

    fn unreadable_files_are_403<B>() {
        use std::os::unix::fs::PermissionsExt;
        let tree = Tree::new(&[("closed.txt", "text"), ("closed/a.txt", "text"), ("closed/index.html", "text")]);
        let server = tree.serve::<B>();
        let mut client = server.connect();
        if rustix::process::geteuid().is_root() {
            return println!("skipped: root can read all files");
        }
        for (name, mode) in [("closed.txt", 0), ("closed", 0)] {
            std::fs::set_permissions(tree.path().join(name), std::fs::Permissions::from_mode(mode)).expect("set permissions");
        }
        for path in ["/closed.txt", "/closed/a.txt", "/closed/"] {
            assert_eq!(get(&mut client, path).status, 403, "{path}");
        }
        std::fs::set_permissions(tree.path().join("closed"), std::fs::Permissions::from_mode(0o700)).expect("set permissions");
    }

    // A directory is repeatedly swapped for a symlink out of the root while files in it are requested.
    fn a_directory_swapped_for_a_symlink_does_not_escape_the_root<B>() {
        let tree = Tree::new(&[("swap/a.txt", "inside")]);
        std::fs::create_dir(tree.outside().join("swap")).expect("create directory");
        std::fs::write(tree.outside().join("swap/a.txt"), "outside").expect("write file");
        let (inside, aside) = (tree.path().join("swap"), tree.path().join("aside"));
        let server = tree.serve::<B>();
        std::thread::scope(|scope| {
            let requests = scope.spawn(|| {
                let mut client = server.connect();
                for at in 0..2000 {
                    // Vary the path to bypass the cache.
                    let response = get(&mut client, &format!("/swap/{}a.txt", "/".repeat(at % 50)));
                    assert!(response.status == 404 || response.text() == "inside", "{response:?}");
                }
            });
            while !requests.is_finished() {
                std::fs::rename(&inside, &aside).expect("rename");
                symlink("../swap", &inside).expect("create symlink");
                std::fs::remove_file(&inside).expect("remove file");
                std::fs::rename(&aside, &inside).expect("rename");
            }
        });
    }
}
