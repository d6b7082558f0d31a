//! No name leads out of the directory, however it is written.

use super::{Tree, get};
use crate::harness::on_every_backend;

const CORPUS: &str = include_str!("../../files/traversal.txt");
const SECRET: &str = "nobody may read this";

fn corpus() -> impl Iterator<Item = &'static str> {
    CORPUS.lines().filter(|line| !line.starts_with('#'))
}

/// A directory with links that lead out of it, and the secret beside it.
fn tree() -> Tree {
    let tree = Tree::new(&[("a.txt", "text"), ("sub/b.txt", "text")]);
    std::fs::write(tree.outside().join("secret.txt"), SECRET).expect("a file");
    #[cfg(unix)]
    for (to, from) in [
        ("..".as_ref(), "up"),
        ("../secret.txt".as_ref(), "link.txt"),
        (tree.outside(), "out"),
        ("sub/../up/root/../".as_ref(), "chain"),
        (tree.outside().join("secret.txt").as_path(), "absolute.txt"),
    ] {
        std::os::unix::fs::symlink(to, tree.path().join(from)).expect("a link");
    }
    tree
}

on_every_backend! {
    fn nothing_leads_out<B>() {
        let tree = tree();
        let server = tree.serve::<B>();
        let mut count = 0;
        for target in corpus() {
            let mut client = server.connect();
            let answer = get(&mut client, target);
            assert!(matches!(answer.status, 400 | 404), "{target}: {answer:?}");
            assert!(!answer.text().contains(SECRET) && !answer.text().contains("root:"), "{target}: {answer:?}");
            count += 1;
        }
        assert!(count >= 200, "only {count} targets: is the corpus read?");
        // The directory itself is still served.
        assert_eq!(get(&mut server.connect(), "/a.txt").text(), "text");
    }
}
