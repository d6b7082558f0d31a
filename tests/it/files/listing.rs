//! Directory listings: contents, order, HTML and JSON.

use std::io::ErrorKind;
use std::sync::OnceLock;

use serverd::apps::files::Options;
use serverd::{Files, HttpServer, Router};

use super::{Tree, get, request};
use crate::harness::{RawResponse, Server, on_every_backend, serve, skipped_under_wine};

/// Returns the links of the table rows, in order.
fn links(response: &RawResponse) -> Vec<String> {
    let page = response.text();
    let rows = page.split("<tbody>").nth(1).expect("table body").split("</tbody>").next().expect("end of table body");
    rows.split("<a href=\"").skip(1).filter_map(|rest| rest.split('"').next()).map(ToOwned::to_owned).collect()
}

fn tree() -> Tree {
    let tree = Tree::new(&[("b10.txt", "1234567"), ("b9.txt", ""), ("sub/inner.txt", "x"), ("Alpha/", "")]);
    tree.write("large.bin", vec![0; 1_234_567]);
    tree.write(".hidden", "secret");
    tree
}

on_every_backend! {
    fn a_directory_is_listed_as_html<B>() {
        let tree = tree();
        let server = tree.serve::<B>();
        let mut client = server.connect();
        let response = get(&mut client, "/");
        assert_eq!((response.status, response.header("content-type")), (200, Some("text/html; charset=utf-8")));
        assert_eq!((response.header("cache-control"), response.header("vary")), (Some("no-cache"), Some("Accept")));
        let policy = response.header("content-security-policy").expect("Content-Security-Policy");
        assert!(policy.starts_with("default-src 'none'; style-src 'sha256-") && !policy.contains("script"), "{policy}");
        assert_eq!(links(&response), ["Alpha/", "sub/", "b9.txt", "b10.txt", "large.bin"]);
        let page = response.text();
        for part in [
            "<title>root</title>",
            "2 directories, 3 files, 1.17 MiB",
            "title=\"1,234,567 bytes\">1.17 MiB<",
            "<time datetime=\"2020-11-14T12:00:00Z\">2020-11-14 12:00</time>",
        ] {
            assert!(page.contains(part), "{part} in {page}");
        }
        assert!(!page.contains(".hidden") && !page.contains("secret") && !page.contains("<script"));
        let head = request(&mut client, "HEAD", "/", "");
        assert_eq!(head.header("content-length"), Some(response.body.len().to_string().as_str()));
        let inner = get(&mut client, "/sub/");
        assert!(inner.text().contains("aria-current=\"page\">sub<") && inner.text().contains("<title>/sub/</title>"));
        assert_eq!(links(&inner), ["../", "inner.txt"]);
        let empty = get(&mut client, "/Alpha/");
        assert!(empty.text().contains("This directory is empty.") && empty.text().contains("0 directories, 0 files, 0 B"));
    }

    fn listings_sort_by_name_size_and_date<B>() {
        let tree = tree();
        std::fs::File::options().write(true).open(tree.path().join("b9.txt")).expect("open file")
            .set_modified(std::time::SystemTime::now()).expect("set mtime");
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
        // Links to other directories preserve the order, and a column header reverses it.
        let response = get(&mut client, "/sub/?sort=size&order=desc");
        assert_eq!(links(&response)[0], "../?sort=size&amp;order=desc");
        let page = response.text();
        for part in [
            "aria-sort=\"descending\"><form><button name=\"sort\" value=\"size\">Size</button><input type=\"hidden\" name=\"order\" value=\"asc\">",
            "<button name=\"sort\" value=\"date\">Modified (UTC)</button><input type=\"hidden\" name=\"order\" value=\"desc\">",
            "<button name=\"format\" value=\"json\">",
        ] {
            assert!(page.contains(part), "{part} in {page}");
        }
        assert!(!page.contains("href=\"?"), "a program that follows links fetches each listing once: {page}");
    }

    fn listings_are_filtered_by_name<B>() {
        let tree = tree();
        let server = tree.serve::<B>();
        let mut client = server.connect();
        for (query, expected) in [
            ("?q=B9", &["b9.txt"][..]),
            ("?q=.TXT&sort=name&order=desc", &["b10.txt", "b9.txt"]),
            ("?q=a", &["Alpha/", "large.bin"]),
            ("?q=+", &["Alpha/", "sub/", "b9.txt", "b10.txt", "large.bin"]),
            ("?q=none", &[]),
        ] {
            assert_eq!(links(&get(&mut client, &format!("/{query}"))), expected, "{query}");
        }
        let page = get(&mut client, "/?q=%22%3E%3Cscript%3E&sort=size").text();
        assert!(page.contains("No name matches") && !page.contains("<script"), "{page}");
        assert!(page.contains("name=\"q\" value=\"&quot;&gt;&lt;script&gt;\"><button"), "sorting keeps the filter: {page}");
        let list: serde_json::Value = serde_json::from_slice(&get(&mut client, "/?format=json&q=sub").body).expect("JSON");
        assert_eq!((list.as_array().map(Vec::len), &list[0]["name"]), (Some(1), &"sub".into()));
    }

    fn the_accept_header_selects_the_format<B>() {
        let tree = tree();
        let server = tree.serve::<B>();
        let mut client = server.connect();
        for (accept, json) in [
            ("application/json, text/plain, */*", true),
            ("application/json", true),
            ("*/*, application/json", true),
            ("application/json;q=0.9, */*;q=0.9", true),
            ("text/*, application/json", true),
            ("application/json;q=0.8, */*", false),
            ("*/*", false),
            ("text/html, application/json", false),
            ("text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8", false),
            ("image/png", false),
        ] {
            let response = request(&mut client, "GET", "/", &format!("Accept: {accept}\r\n"));
            assert_eq!(response.header("content-type") == Some("application/json"), json, "{accept}");
        }
    }

    fn a_directory_is_listed_as_json<B>() {
        let tree = tree();
        let server = tree.serve::<B>();
        let mut client = server.connect();
        let by_query = get(&mut client, "/?format=json");
        let by_accept = request(&mut client, "GET", "/", "Accept: application/json, text/html;q=0.5\r\n");
        assert_eq!(by_query.body, by_accept.body);
        assert_eq!((by_query.header("content-type"), by_query.header("vary")), (Some("application/json"), Some("Accept")));
        let list: serde_json::Value = serde_json::from_slice(&by_query.body).expect("JSON");
        assert_eq!(list.as_array().map(Vec::len), Some(5));
        assert_eq!((&list[1]["name"], &list[1]["href"], &list[1]["type"]), (&"sub".into(), &"sub/".into(), &"directory".into()));
        let file = serde_json::json!({
            "name": "b10.txt", "href": "b10.txt", "type": "file", "size": 7, "mtime": "2020-11-14T12:00:00Z"
        });
        assert_eq!(list[3], file);
        let html = request(&mut client, "GET", "/?format=html", "Accept: application/json\r\n");
        assert_eq!(html.header("content-type"), Some("text/html; charset=utf-8"));
        let empty = get(&mut client, "/Alpha/?format=json");
        assert_eq!(empty.text(), "[]\n");
    }

    fn an_index_file_or_an_option_suppresses_the_listing<B>() {
        let tree = tree();
        tree.write("sub/index.html", "the index");
        let server = tree.serve::<B>();
        assert_eq!(get(&mut server.connect(), "/sub/").text(), "the index");
        assert_eq!(get(&mut server.connect(), "/sub/?format=json").text(), "the index");
        let server = tree.serve_with::<B>(Options::default().listing(false));
        assert_eq!(get(&mut server.connect(), "/").status, 404);
        let server = tree.serve_with::<B>(Options::default().hidden(true));
        assert_eq!(links(&get(&mut server.connect(), "/"))[2], ".hidden");
    }

    fn listing_links_work_below_a_mount<B>() {
        let tree = tree();
        let files = Files::with_options(tree.path(), Options::default()).expect("open directory");
        let server = serve::<B, _>(move || HttpServer::with(Router::new().mount("/at/all", files)));
        let page = get(&mut server.connect(), "/at/all/sub/").text();
        assert!(page.contains("<title>/sub/</title>") && page.contains("<a href=\"../\"><span class=\"home\">"), "{page}");
        assert_eq!(get(&mut server.connect(), "/at/all/sub/../").status, 404, "`..` is resolved by the client, not by the server");
    }

    fn only_served_entries_are_listed<B>() {
        let tree = tree();
        create_special_files(&tree);
        let server = tree.serve::<B>();
        let listed = links(&get(&mut server.connect(), "/"));
        let followed: &[&str] = if cfg!(unix) { &["to-dir/", "to-file"] } else { &[] };
        for name in followed {
            assert!(listed.iter().any(|link| link == name), "{name} in {listed:?}");
        }
        assert_eq!(listed.len(), 5 + followed.len(), "{listed:?}");
        let mut client = server.connect();
        for link in &listed {
            assert_eq!(get(&mut client, &format!("/{link}")).status, 200, "{link}");
        }
    }

    fn listing_a_huge_directory_does_not_block_the_loop<B>() {
        if skipped_under_wine("a directory of 20,000 files takes minutes") {
            return;
        }
        let tree = huge_tree();
        let server = tree.serve::<B>();
        // A later request is answered before the listing. Scheduling delays can hide that, so try several times.
        assert!((0..50).any(|_| is_overtaken(&server)), "the listing blocked the loop");
        let response = get(&mut server.connect(), "/?sort=size");
        assert_eq!(response.header("transfer-encoding"), Some("chunked"));
        assert!(response.text().contains("0 directories, 20,000 files"));
        assert_eq!(links(&response).len(), 20_000);
        let list: serde_json::Value = serde_json::from_slice(&get(&mut server.connect(), "/?format=json").body).expect("JSON");
        assert_eq!(list.as_array().map(Vec::len), Some(20_000));
    }
}

/// Returns whether a request sent after a request for the listing is answered first.
fn is_overtaken(server: &Server) -> bool {
    let (mut lister, mut other) = (server.connect(), server.connect());
    assert_eq!(get(&mut other, "/file-1.txt").status, 200);
    assert_eq!(get(&mut lister, "/file-1.txt").status, 200);
    lister.send("GET / HTTP/1.1\r\nHost: x\r\n\r\n");
    assert_eq!(get(&mut other, "/file-1.txt").status, 200);
    lister.socket.set_nonblocking(true).expect("set nonblocking");
    let peeked = lister.socket.peek(&mut [0]);
    lister.reset();
    peeked.is_err_and(|error| error.kind() == ErrorKind::WouldBlock)
}

/// Returns a directory of 20,000 files, created once.
fn huge_tree() -> &'static Tree {
    static HUGE: OnceLock<Tree> = OnceLock::new();
    HUGE.get_or_init(|| {
        let tree = Tree::new(&[]);
        for number in 0..20_000 {
            std::fs::File::create(tree.path().join(format!("file-{number}.txt"))).expect("create file");
        }
        tree
    })
}

#[cfg(unix)]
fn create_special_files(tree: &Tree) {
    use std::os::unix::fs::symlink;
    let outside = tree.outside();
    std::fs::write(outside.join("secret.txt"), "secret").expect("write file");
    std::fs::create_dir(outside.join("secrets")).expect("create directory");
    let root = tree.path();
    symlink("sub", root.join("to-dir")).expect("create symlink");
    symlink("b9.txt", root.join("to-file")).expect("create symlink");
    symlink("../secret.txt", root.join("out-file")).expect("create symlink");
    symlink(outside.join("secrets"), root.join("out-dir")).expect("create symlink");
    symlink("nowhere", root.join("dangling")).expect("create symlink");
    symlink("itself", root.join("itself")).expect("create symlink");
    super::special_files::make_fifo(&root.join("fifo"));
    drop(std::os::unix::net::UnixListener::bind(root.join("socket")).expect("bind socket"));
}

#[cfg(not(unix))]
fn create_special_files(_: &Tree) {}

/// Hostile names, and the text that represents each on the page.
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
        fn hostile_names_are_escaped_and_linked_correctly<B>() {
            use std::os::unix::ffi::OsStrExt;
            let tree = Tree::new(&[]);
            for (name, _) in HOSTILE {
                // A name cannot contain a slash.
                let name: Vec<u8> = name.iter().map(|&byte| if byte == b'/' { b'|' } else { byte }).collect();
                let path = tree.path().join(std::ffi::OsStr::from_bytes(&name));
                std::fs::write(&path, &name).expect("write file");
                std::fs::create_dir(tree.path().join(std::ffi::OsStr::from_bytes(&[&name[..], b".d"].concat()))).expect("create directory");
            }
            let server = tree.serve::<B>();
            let mut client = server.connect();
            let response = get(&mut client, "/");
            let page = response.text();
            for (_, escaped) in HOSTILE {
                assert!(page.contains(&escaped.replace("&lt;/", "&lt;|")), "{escaped:?} in {page}");
            }
            assert!(!page.contains("<script"));
            let listed = links(&response);
            assert_eq!(listed.len(), 2 * HOSTILE.len());
            let mut contents = Vec::new();
            for link in &listed {
                let response = get(&mut client, &format!("/{link}"));
                assert_eq!(response.status, 200, "{link}");
                if !link.ends_with('/') {
                    contents.push(response.body);
                }
            }
            contents.sort();
            let mut names: Vec<Vec<u8>> = HOSTILE
                .iter()
                .map(|(name, _)| name.iter().map(|&byte| if byte == b'/' { b'|' } else { byte }).collect())
                .collect();
            names.sort();
            assert_eq!(contents, names, "each link leads to the file of that name");
            let list: Vec<serde_json::Value> = serde_json::from_slice(&get(&mut client, "/?format=json").body).expect("JSON");
            let hrefs: Vec<&str> = list.iter().map(|entry| entry["href"].as_str().expect("UTF-8")).collect();
            assert_eq!(hrefs, listed);
        }
    }
}
