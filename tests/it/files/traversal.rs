//! Path traversal: no path escapes the root, in any encoding.

use super::{Tree, get};
use crate::harness::on_every_backend;

const CORPUS: &str = include_str!("../../files/traversal.txt");
const SECRET: &str = "top secret";

fn corpus() -> impl Iterator<Item = &'static str> {
    CORPUS.lines().filter(|line| !line.starts_with('#'))
}

/// A directory with symbolic links that lead out of it, next to a secret file.
fn tree() -> Tree {
    let tree = Tree::new(&[("a.txt", "text"), ("sub/b.txt", "text")]);
    std::fs::write(tree.outside().join("secret.txt"), SECRET).expect("write file");
    #[cfg(unix)]
    for (target, link) in [
        ("..".as_ref(), "up"),
        ("../secret.txt".as_ref(), "link.txt"),
        (tree.outside(), "out"),
        ("sub/../up/root/../".as_ref(), "chain"),
        (tree.outside().join("secret.txt").as_path(), "absolute.txt"),
    ] {
        std::os::unix::fs::symlink(target, tree.path().join(link)).expect("create symlink");
    }
    tree
}

on_every_backend! {
    fn no_path_escapes_the_root<B>() {
        let tree = tree();
        let server = tree.serve::<B>();
        let mut count = 0;
        for target in corpus() {
            let mut client = server.connect();
            let response = get(&mut client, target);
            assert!(matches!(response.status, 400 | 404), "{target}: {response:?}");
            assert!(!response.text().contains(SECRET) && !response.text().contains("root:"), "{target}: {response:?}");
            count += 1;
        }
        assert!(count >= 200, "only {count} targets in the corpus");
        // Files in the root are still served.
        assert_eq!(get(&mut server.connect(), "/a.txt").text(), "text");
    }
}
