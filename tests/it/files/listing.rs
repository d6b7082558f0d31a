//! Listings: what is there, in any order, as a page and as JSON, and nothing else.

use std::io::ErrorKind;
use std::sync::OnceLock;

use serverd::apps::files::Options;
use serverd::{Files, HttpServer, Router};

use super::{Tree, ask, get};
use crate::harness::{Answer, Server, on_every_backend, serve, skipped_under_wine};

/// The links of the rows, in order.
fn links(answer: &Answer) -> Vec<String> {
    let page = answer.text();
    let rows = page.split("<tbody>").nth(1).expect("a table").split("</tbody>").next().expect("its end");
    rows.split("<a href=\"").skip(1).filter_map(|rest| rest.split('"').next()).map(ToOwned::to_owned).collect()
}

fn tree() -> Tree {
    let tree = Tree::new(&[("b10.txt", "1234567"), ("b9.txt", ""), ("sub/inner.txt", "x"), ("Alpha/", "")]);
    tree.write("large.bin", vec![0; 1_234_567]);
    tree.write(".hidden", "secret");
    tree
}

on_every_backend! {
    fn a_directory_is_listed_as_a_page<B>() {
        let tree = tree();
        let server = tree.serve::<B>();
        let mut client = server.connect();
        let answer = get(&mut client, "/");
        assert_eq!((answer.status, answer.field("content-type")), (200, Some("text/html; charset=utf-8")));
        assert_eq!((answer.field("cache-control"), answer.field("vary")), (Some("no-cache"), Some("Accept")));
        let policy = answer.field("content-security-policy").expect("a policy");
        assert!(policy.starts_with("default-src 'none'; style-src 'sha256-") && !policy.contains("script"), "{policy}");
        assert_eq!(links(&answer), ["Alpha/", "sub/", "b9.txt", "b10.txt", "large.bin"]);
        let page = answer.text();
        for part in [
            "<title>/</title>",
            "2 directories, 3 files, 1.17 MiB",
            "title=\"1,234,567 bytes\">1.17 MiB<",
            "<time datetime=\"2020-11-14T12:00:00Z\">2020-11-14 12:00</time>",
        ] {
            assert!(page.contains(part), "{part} in {page}");
        }
        assert!(!page.contains(".hidden") && !page.contains("secret") && !page.contains("<script"));
        let head = ask(&mut client, "HEAD", "/", "");
        assert_eq!(head.field("content-length"), Some(answer.body.len().to_string().as_str()));
        let inner = get(&mut client, "/sub/");
        assert!(inner.text().contains("aria-current=\"page\">sub<") && inner.text().contains("<title>/sub/</title>"));
        assert_eq!(links(&inner), ["../", "inner.txt"]);
        let empty = get(&mut client, "/Alpha/");
        assert!(empty.text().contains("This directory is empty.") && empty.text().contains("0 directories, 0 files, 0 B"));
    }

    fn links_sort_by_name_size_and_date<B>() {
        let tree = tree();
        std::fs::File::options().write(true).open(tree.path().join("b9.txt")).expect("it")
            .set_modified(std::time::SystemTime::now()).expect("a time");
        let server = tree.serve::<B>();
        let mut client = server.connect();
        let mut files = |query: &str| {
            let all = links(&get(&mut client, &format!("/{query}")));
            assert!(all[0].contains('/') && all[1].contains('/'), "directories first: {all:?}");
            all[2..].join(" ")
        };
        for (query, order) in [
            ("?sort=name&order=desc", "large.bin b10.txt b9.txt"),
            ("?sort=size&order=desc", "large.bin b10.txt b9.txt"),
            ("?sort=size", "large.bin b10.txt b9.txt"),
            ("?sort=size&order=asc", "b9.txt b10.txt large.bin"),
            ("?sort=date&order=desc", "b9.txt b10.txt large.bin"),
            ("?sort=date&order=asc", "b10.txt large.bin b9.txt"),
            ("?sort=nonsense&order=1&x=%ff", "b9.txt b10.txt large.bin"),
        ] {
            assert_eq!(files(query), order, "{query}");
        }
        // The order stays from directory to directory, and the head of a column turns it around.
        let answer = get(&mut client, "/sub/?sort=size&order=desc");
        assert_eq!(links(&answer)[0], "../?sort=size&amp;order=desc");
        let page = answer.text();
        assert!(page.contains("aria-sort=\"descending\"><a href=\"?sort=size&amp;order=asc\">Size<"), "{page}");
        assert!(page.contains("<a href=\"?sort=date&amp;order=desc\">"), "{page}");
    }

    fn the_same_is_told_as_json<B>() {
        let tree = tree();
        let server = tree.serve::<B>();
        let mut client = server.connect();
        let by_query = get(&mut client, "/?format=json");
        let by_accept = ask(&mut client, "GET", "/", "Accept: application/json, text/html;q=0.5\r\n");
        assert_eq!(by_query.body, by_accept.body);
        assert_eq!((by_query.field("content-type"), by_query.field("vary")), (Some("application/json"), Some("Accept")));
        let list: serde_json::Value = serde_json::from_slice(&by_query.body).expect("JSON");
        assert_eq!(list.as_array().map(Vec::len), Some(5));
        assert_eq!((&list[1]["name"], &list[1]["href"], &list[1]["type"]), (&"sub".into(), &"sub/".into(), &"directory".into()));
        let file = serde_json::json!({
            "name": "b10.txt", "href": "b10.txt", "type": "file", "size": 7, "mtime": "2020-11-14T12:00:00Z"
        });
        assert_eq!(list[3], file);
        let html = ask(&mut client, "GET", "/?format=html", "Accept: application/json\r\n");
        assert_eq!(html.field("content-type"), Some("text/html; charset=utf-8"));
        let empty = get(&mut client, "/Alpha/?format=json");
        assert_eq!(empty.text(), "[]\n");
    }

    fn an_index_or_a_wish_keeps_it_away<B>() {
        let tree = tree();
        tree.write("sub/index.html", "the index");
        let server = tree.serve::<B>();
        assert_eq!(get(&mut server.connect(), "/sub/").text(), "the index");
        assert_eq!(get(&mut server.connect(), "/sub/?format=json").text(), "the index");
        let server = tree.serve_with::<B>(Options { listing: false, ..Options::default() });
        assert_eq!(get(&mut server.connect(), "/").status, 404);
        let server = tree.serve_with::<B>(Options { hidden: true, ..Options::default() });
        assert_eq!(links(&get(&mut server.connect(), "/"))[2], ".hidden");
    }

    fn links_hold_where_the_files_are_mounted<B>() {
        let tree = tree();
        let files = Files::with(tree.path(), Options::default()).expect("a directory");
        let server = serve::<B, _>(move || HttpServer::with(Router::new().mount("/at/all", files)));
        let page = get(&mut server.connect(), "/at/all/sub/").text();
        assert!(page.contains("<title>/sub/</title>") && page.contains("<a href=\"../\"><span class=\"home\">"), "{page}");
        assert_eq!(get(&mut server.connect(), "/at/all/sub/../").status, 404, "the client resolves what is relative");
    }

    fn nothing_is_listed_that_is_not_served<B>() {
        let tree = tree();
        plant_oddities(&tree);
        let server = tree.serve::<B>();
        let listed = links(&get(&mut server.connect(), "/"));
        let inside: &[&str] = if cfg!(unix) { &["to-dir/", "to-file"] } else { &[] };
        for name in inside {
            assert!(listed.iter().any(|own| own == name), "{name} in {listed:?}");
        }
        assert_eq!(listed.len(), 5 + inside.len(), "{listed:?}");
        let mut client = server.connect();
        for link in &listed {
            assert_eq!(get(&mut client, &format!("/{link}")).status, 200, "{link}");
        }
    }

    fn a_huge_directory_keeps_nobody_waiting<B>() {
        if skipped_under_wine("a directory of so many files takes it minutes") {
            return;
        }
        let tree = huge();
        let server = tree.serve::<B>();
        // The listing begins later than another is answered, though it was asked for first. On a machine that stands
        // still in between it may not show at once.
        let overtaken = (0..50).any(|_| is_overtaken(&server));
        assert!(overtaken, "a listing is made on the loop");
        let answer = get(&mut server.connect(), "/?sort=size");
        assert_eq!(answer.field("transfer-encoding"), Some("chunked"));
        assert!(answer.text().contains("0 directories, 100,000 files"));
        assert_eq!(links(&answer).len(), 100_000);
        let list: serde_json::Value = serde_json::from_slice(&get(&mut server.connect(), "/?format=json").body).expect("JSON");
        assert_eq!(list.as_array().map(Vec::len), Some(100_000));
    }
}

fn is_overtaken(server: &Server) -> bool {
    let (mut lister, mut polite) = (server.connect(), server.connect());
    assert_eq!(get(&mut polite, "/file-1.txt").status, 200);
    assert_eq!(get(&mut lister, "/file-1.txt").status, 200);
    lister.send("GET / HTTP/1.1\r\nHost: x\r\n\r\n");
    assert_eq!(get(&mut polite, "/file-1.txt").status, 200);
    lister.socket.set_nonblocking(true).expect("a live socket");
    let seen = lister.socket.peek(&mut [0]);
    lister.reset();
    seen.is_err_and(|error| error.kind() == ErrorKind::WouldBlock)
}

/// 100,000 files, planted once.
fn huge() -> &'static Tree {
    static HUGE: OnceLock<Tree> = OnceLock::new();
    HUGE.get_or_init(|| {
        let tree = Tree::new(&[]);
        for number in 0..100_000 {
            std::fs::File::create(tree.path().join(format!("file-{number}.txt"))).expect("a file");
        }
        tree
    })
}

#[cfg(unix)]
fn plant_oddities(tree: &Tree) {
    use std::os::unix::fs::symlink;
    let outside = tree.outside();
    std::fs::write(outside.join("secret.txt"), "secret").expect("a file");
    std::fs::create_dir(outside.join("secrets")).expect("a directory");
    let root = tree.path();
    symlink("sub", root.join("to-dir")).expect("a link");
    symlink("b9.txt", root.join("to-file")).expect("a link");
    symlink("../secret.txt", root.join("out-file")).expect("a link");
    symlink(outside.join("secrets"), root.join("out-dir")).expect("a link");
    symlink("nowhere", root.join("dangling")).expect("a link");
    symlink("itself", root.join("itself")).expect("a link");
    super::kinds::make_fifo(&root.join("fifo"));
    drop(std::os::unix::net::UnixListener::bind(root.join("socket")).expect("a socket"));
}

#[cfg(not(unix))]
fn plant_oddities(_: &Tree) {}

/// Names that no program expects, each with what it looks like on the page.
#[cfg(unix)]
const HOSTILE: [(&[u8], &str); 14] = [
    (b"<script>alert(1)<script>", "&lt;script&gt;alert(1)&lt;script&gt;"),
    (b"\"onmouseover=alert(1) x=\"", "&quot;onmouseover=alert(1) x=&quot;"),
    (b"it's & so on", "it&#39;s &amp; so on"),
    (b"100%", "100%"),
    (b"%2e%2e", "%2e%2e"),
    (b"a#b?c=d", "a#b?c=d"),
    (b"line\nbreak\r", "line\u{240a}break\u{240d}"),
    (b"javascript:alert(1)", "javascript:alert(1)"),
    (b"back\\slash", "back\\slash"),
    (b"not utf-8 \xff\xfe", "not utf-8 \u{fffd}\u{fffd}"),
    (b" spaces ", " spaces "),
    (b"\xe6\x97\xa5\xe6\x9c\xac", "\u{65e5}\u{672c}"),
    ("\u{202e}gpj.exe".as_bytes(), "\u{fffd}gpj.exe"),
    (b"</tbody></table><a href=", "&lt;/tbody&gt;"),
];

#[cfg(unix)]
mod hostile {
    use super::*;

    on_every_backend! {
        fn hostile_names_are_shown_and_linked_as_what_they_are<B>() {
            use std::os::unix::ffi::OsStrExt;
            let tree = Tree::new(&[]);
            for (name, _) in HOSTILE {
                // A slash can stand in no name.
                let name: Vec<u8> = name.iter().map(|&byte| if byte == b'/' { b'|' } else { byte }).collect();
                let path = tree.path().join(std::ffi::OsStr::from_bytes(&name));
                std::fs::write(&path, &name).expect("a file");
                std::fs::create_dir(tree.path().join(std::ffi::OsStr::from_bytes(&[&name[..], b".d"].concat()))).expect("it");
            }
            let server = tree.serve::<B>();
            let mut client = server.connect();
            let answer = get(&mut client, "/");
            let page = answer.text();
            for (_, shown) in HOSTILE {
                assert!(page.contains(&shown.replace("&lt;/", "&lt;|")), "{shown:?} in {page}");
            }
            assert!(!page.contains("<script"));
            let listed = links(&answer);
            assert_eq!(listed.len(), 2 * HOSTILE.len());
            let mut seen = Vec::new();
            for link in &listed {
                let answer = get(&mut client, &format!("/{link}"));
                assert_eq!(answer.status, 200, "{link}");
                if !link.ends_with('/') {
                    seen.push(answer.body);
                }
            }
            seen.sort();
            let mut names: Vec<Vec<u8>> = HOSTILE
                .iter()
                .map(|(name, _)| name.iter().map(|&byte| if byte == b'/' { b'|' } else { byte }).collect())
                .collect();
            names.sort();
            assert_eq!(seen, names, "each link leads to the file of its name");
            let list: Vec<serde_json::Value> = serde_json::from_slice(&get(&mut client, "/?format=json").body).expect("JSON");
            let hrefs: Vec<&str> = list.iter().map(|one| one["href"].as_str().expect("text")).collect();
            assert_eq!(hrefs, listed);
        }
    }
}
