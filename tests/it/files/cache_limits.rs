//! The file cache is bounded in memory and in file descriptors.

#[cfg(target_os = "linux")]
use std::process::{Command, Stdio};

use serverd::apps::files::Options;

use super::{Tree, get};
use crate::harness::on_every_backend;
#[cfg(target_os = "linux")]
use crate::process::{Running, backends};

/// Creates `count` files of `bytes` bytes each.
fn tree(count: usize, bytes: usize) -> Tree {
    let tree = Tree::new(&[]);
    for at in 0..count {
        tree.write(&format!("{at}.bin"), vec![u8::try_from(at).expect("at < 256"); bytes]);
    }
    tree
}

on_every_backend! {
    fn files_are_served_regardless_of_the_cache_limits<B>() {
        for bytes in [10, 40_000] {
            let tree = tree(20, bytes);
            let server = tree.serve_with::<B>(Options::default().cache_bytes_max(5000).open_files_max(3));
            let uncached = tree.serve_with::<B>(Options::default().cache_bytes_max(0).open_files_max(0));
            let (mut client, mut other) = (server.connect(), uncached.connect());
            for at in (0..20).chain(0..20).chain([19, 19, 18, 19]) {
                let expected = vec![at; bytes];
                assert!(get(&mut client, &format!("/{at}.bin")).body == expected, "{at} of {bytes}");
                assert!(get(&mut other, &format!("/{at}.bin")).body == expected, "{at} of {bytes}");
            }
        }
    }

    fn a_file_not_in_the_page_cache_is_served<B>() {
        let tree = tree(10, 20_000);
        #[cfg(target_os = "linux")]
        for at in 0..10 {
            let file = std::fs::File::open(tree.path().join(format!("{at}.bin"))).expect("open file");
            file.sync_all().expect("sync file");
            rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).expect("fadvise");
        }
        let server = tree.serve::<B>();
        let mut client = server.connect();
        for at in 0..10 {
            assert!(get(&mut client, &format!("/{at}.bin")).body == vec![at; 20_000], "{at}");
        }
    }
}

/// Returns the number of descriptors of this process that refer to files below a directory, and how many of these files
/// are deleted.
#[cfg(target_os = "linux")]
fn descriptors_below(directory: &std::path::Path) -> (usize, usize) {
    let links = std::fs::read_dir("/proc/self/fd").expect("list descriptors");
    let paths = links.filter_map(|link| std::fs::read_link(link.ok()?.path()).ok());
    let below: Vec<_> = paths.filter(|path| path.starts_with(directory) && path != directory).collect();
    let deleted = below.iter().filter(|path| path.as_os_str().as_encoded_bytes().ends_with(b" (deleted)")).count();
    (below.len(), deleted)
}

#[cfg(target_os = "linux")]
mod descriptors {
    use super::*;

    on_every_backend! {
        fn descriptors_of_deleted_and_unused_files_are_closed<B>() {
            let tree = tree(10, 40_000);
            let root = tree.path();
            let server = tree.serve::<B>();
            let mut client = server.connect();
            for at in 0..10 {
                assert_eq!(get(&mut client, &format!("/{at}.bin")).status, 200);
            }
            assert_eq!(descriptors_below(&root), (10, 0));
            for at in 0..4 {
                std::fs::remove_file(root.join(format!("{at}.bin"))).expect("remove file");
            }
            let new = tree.write("new", vec![4; 40_000]);
            std::fs::rename(new, root.join("4.bin")).expect("rename");
            let wait_for = |count: usize, seconds: u64| {
                let start = std::time::Instant::now();
                while descriptors_below(&root).0 != count {
                    assert!(start.elapsed().as_secs() <= seconds, "{:?}", descriptors_below(&root));
                    std::thread::sleep(std::time::Duration::from_millis(50));
                }
            };
            // The server is idle. A busy machine may need longer than the documented two and eleven seconds.
            wait_for(5, 8);
            wait_for(0, 30);
            for at in 4..10 {
                assert_eq!(get(&mut client, &format!("/{at}.bin")).body, vec![at; 40_000]);
            }
        }
    }
}

/// Cached open files are closed when the process runs out of file descriptors (EMFILE).
#[cfg(target_os = "linux")]
#[test]
fn cached_files_are_closed_when_file_descriptors_run_out() {
    let tree = tree(100, 40_000);
    for backend in backends() {
        let line = format!(
            "ulimit -n 40; exec {} files {} -p 0 -b {backend}",
            env!("CARGO_BIN_EXE_serverd"),
            tree.path().display()
        );
        let mut command = Command::new("sh");
        command.args(["-c", &line]).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let server = Running::spawn(&mut command);
        let mut client = server.connect();
        for at in (0..100).chain(0..100) {
            let response = get(&mut client, &format!("/{at}.bin"));
            assert!(response.status == 200 && response.body == vec![at; 40_000], "{backend}: {at}: {}", response.head);
        }
    }
}
