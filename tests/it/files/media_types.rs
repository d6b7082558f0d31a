//! Media types by extension, by content, and as configured.

use serverd::apps::files::Options;

use super::{Tree, get};
use crate::harness::on_every_backend;

on_every_backend! {
    fn media_types_follow_the_name_and_the_content<B>() {
        let tree = Tree::new(&[("README", "gr\u{fc}n\n"), ("main.zig", "const x = 1;\n"), ("a.yaml", "a: 1\n"), ("a.log", "x")]);
        tree.write("icon.svgz", b"\x1f\x8b\x08\0rest");
        tree.write("latin.html", b"gr\xfcn");
        tree.write("clip.ts", [&[0x47][..], &[0; 187]].concat());
        tree.write("blob", [0_u8, 1, 2, 3]);
        // Larger than the part of a file that is examined.
        tree.write("large", "text\n".repeat(50_000));
        tree.write("large.html", [&b"<p>".repeat(20_000)[..], b"gr\xfcn"].concat());
        let options = Options::default().types(vec![("log".into(), "text/x-log".into())]);
        let server = tree.serve_with::<B>(options);
        let mut client = server.connect();
        for (path, expected) in [
            ("/README", "text/plain; charset=utf-8"),
            ("/main.zig", "text/plain; charset=utf-8"),
            ("/a.yaml", "application/yaml"),
            ("/a.log", "text/x-log; charset=utf-8"),
            ("/icon.svgz", "image/svg+xml"),
            ("/latin.html", "text/html"),
            ("/clip.ts", "video/mp2t"),
            ("/blob", "application/octet-stream"),
            ("/large", "text/plain; charset=utf-8"),
            ("/large.html", "text/html; charset=utf-8"),
        ] {
            for _ in 0..2 {
                let response = get(&mut client, path);
                assert_eq!((response.status, response.header("content-type")), (200, Some(expected)), "{path}");
                let coding = (path == "/icon.svgz").then_some("gzip");
                assert_eq!(response.header("content-encoding"), coding, "{path}");
            }
        }
    }
}
