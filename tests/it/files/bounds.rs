//! What is remembered of files is bounded, and so are descriptors.

#[cfg(target_os = "linux")]
use std::process::{Command, Stdio};

use serverd::apps::files::Options;

use super::{Tree, get};
use crate::harness::on_every_backend;
#[cfg(target_os = "linux")]
use crate::process::{Running, backends};

/// So many files of so many bytes.
fn tree(count: usize, bytes: usize) -> Tree {
    let tree = Tree::new(&[]);
    for at in 0..count {
        tree.write(&format!("{at}.bin"), vec![u8::try_from(at).expect("small"); bytes]);
    }
    tree
}

on_every_backend! {
    fn whatever_the_bounds_are_every_file_is_served<B>() {
        for bytes in [10, 40_000] {
            let tree = tree(20, bytes);
            let server = tree.serve_with::<B>(Options { cache_bytes_max: 5000, open_files_max: 3, ..Options::default() });
            let none = tree.serve_with::<B>(Options { cache_bytes_max: 0, open_files_max: 0, ..Options::default() });
            let (mut client, mut other) = (server.connect(), none.connect());
            for at in (0..20).chain(0..20).chain([19, 19, 18, 19]) {
                let expected = vec![at; bytes];
                assert!(get(&mut client, &format!("/{at}.bin")).body == expected, "{at} of {bytes}");
                assert!(get(&mut other, &format!("/{at}.bin")).body == expected, "{at} of {bytes}");
            }
        }
    }

    fn a_file_that_is_not_in_memory_yet_is_served_all_the_same<B>() {
        let tree = tree(10, 20_000);
        #[cfg(target_os = "linux")]
        for at in 0..10 {
            let file = std::fs::File::open(tree.path().join(format!("{at}.bin"))).expect("a file");
            file.sync_all().expect("own");
            rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).expect("own");
        }
        let server = tree.serve::<B>();
        let mut client = server.connect();
        for at in 0..10 {
            assert!(get(&mut client, &format!("/{at}.bin")).body == vec![at; 20_000], "{at}");
        }
    }
}

/// Files that are kept open in case are closed when their descriptors are needed.
#[cfg(target_os = "linux")]
#[test]
fn descriptors_that_are_used_up_are_found_again() {
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
            let answer = get(&mut client, &format!("/{at}.bin"));
            assert!(answer.status == 200 && answer.body == vec![at; 40_000], "{backend}: {at}: {}", answer.head);
        }
    }
}
