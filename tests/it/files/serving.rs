//! Basic file serving: paths, index files, redirects, methods and mounts.

use serverd::apps::files::Options;
use serverd::{Files, HttpServer, RequestHead, Router, StatusCode, layers};

use super::{Tree, get, request};
use crate::harness::{on_every_backend, serve};
use crate::process::{Running, backends, run};

fn site() -> Tree {
    Tree::new(&[
        ("index.html", "<p>home"),
        ("a.txt", "text\n"),
        ("empty", ""),
        ("sub/index.html", "<p>sub"),
        ("bare/b.css", "b{}"),
        (".hidden", "hidden"),
        (".git/config", "hidden"),
    ])
}

on_every_backend! {
    over_tls_too:

    fn a_file_is_served_with_content_type_and_length<B>() {
        let tree = site();
        let server = tree.serve::<B>();
        let mut client = server.connect();
        for (path, content_type, text) in [
            ("/a.txt", "text/plain; charset=utf-8", "text\n"),
            ("/bare/b.css?v=1", "text/css; charset=utf-8", "b{}"),
            ("/empty", "application/octet-stream", ""),
            ("/%61%2Etxt", "text/plain; charset=utf-8", "text\n"),
            ("//bare///b.css", "text/css; charset=utf-8", "b{}"),
            ("http://x/a.txt", "text/plain; charset=utf-8", "text\n"),
        ] {
            let response = get(&mut client, path);
            assert_eq!((response.status, response.text().as_str()), (200, text), "{path}");
            assert_eq!(response.header("content-type"), Some(content_type), "{path}");
            assert_eq!(response.header("x-content-type-options"), Some("nosniff"));
            let head = request(&mut client, "HEAD", path, "");
            assert_eq!((head.status, head.header("content-length")), (200, Some(text.len().to_string().as_str())));
        }
    }

    fn a_directory_serves_its_index_file<B>() {
        let tree = site();
        let server = tree.serve::<B>();
        let mut client = server.connect();
        for (path, text) in [("/", "<p>home"), ("/sub/", "<p>sub"), ("/sub//?x", "<p>sub")] {
            assert_eq!(get(&mut client, path).text(), text, "{path}");
        }
        let options = Options::default().index(vec!["none".into(), "b.css".into()]);
        let server = tree.serve_with::<B>(options);
        assert_eq!(get(&mut server.connect(), "/bare/").text(), "b{}");
    }

    fn a_directory_without_a_trailing_slash_redirects_and_keeps_the_query<B>() {
        let tree = site();
        if cfg!(unix) {
            tree.write("a:b/", "");
            tree.write("sub/a:b/", "");
        }
        let server = tree.serve::<B>();
        let mut client = server.connect();
        for (path, location) in [
            ("/sub", "./sub/"),
            ("/sub?a=b&c", "./sub/?a=b&c"),
            ("/sub?", "./sub/?"),
            ("//sub", "./sub/"),
            ("//sub//?//x", ""),
            ("/./sub", "./sub/"),
            ("/sub/.", ""),
            ("/s%75b?%0d", "./sub/?%0d"),
            // Neither a scheme nor a host.
            ("/a:b", "./a:b/"),
            ("/sub/a:b", "./a:b/"),
        ] {
            if path.contains(':') && cfg!(windows) {
                continue;
            }
            let response = get(&mut client, path);
            let expected = if location.is_empty() { (200, None) } else { (301, Some(location)) };
            assert_eq!((response.status, response.header("location")), expected, "{path}");
        }
    }

    fn dot_segments_are_removed<B>() {
        let tree = site();
        let server = tree.serve::<B>();
        let mut client = server.connect();
        for (path, text) in [
            ("/./a.txt", "text\n"),
            ("/bare/./b.css", "b{}"),
            ("/././bare/./././b.css", "b{}"),
            ("/%2e/bare/%2E/b.css", "b{}"),
            ("/sub/.", "<p>sub"),
            ("/sub/%2e", "<p>sub"),
            ("/sub/./", "<p>sub"),
            ("/.", "<p>home"),
        ] {
            assert_eq!(get(&mut client, path).text(), text, "{path}");
        }
        for path in ["/..", "/./../a.txt", "/sub/../a.txt", "/sub/%2e%2e/a.txt", "/sub/./../../a.txt", "/a.txt/."] {
            assert_eq!(get(&mut client, path).status, 404, "{path}");
        }
    }

    fn clean_urls_omit_the_extension_of_pages<B>() {
        let tree = Tree::new(&[
            ("index.html", "home"),
            ("about.html", "about page"),
            ("about/index.html", "about directory"),
            ("both", "exact"),
            ("both.html", "page"),
            ("dir/index.html", "directory"),
            ("dir/a b.html", "odd"),
            ("style.css", "b{}"),
        ]);
        let server = tree.serve_with::<B>(Options::default().clean_urls(true));
        let mut client = server.connect();
        for (path, text) in [
            ("/", "home"),
            ("/about", "about page"),
            ("/about?x", "about page"),
            ("/about/", "about directory"),
            ("/both", "exact"),
            ("/both.html", "page"),
            ("/dir/", "directory"),
            ("/dir/a%20b", "odd"),
            ("/style.css", "b{}"),
        ] {
            assert_eq!((get(&mut client, path).status, get(&mut client, path).text().as_str()), (200, text), "{path}");
        }
        for (path, location) in [
            ("/about.html?x=1", "./about?x=1"),
            ("/dir/a%20b.html", "./a%20b"),
            ("/index.html", "./"),
            ("/dir/index.html", "./"),
        ] {
            let response = get(&mut client, path);
            assert_eq!((response.status, response.header("location")), (308, Some(location)), "{path}");
        }
        assert_eq!(get(&mut client, "/dir").status, 301);
        for path in ["/none", "/about.html/", "/.html", "/style"] {
            assert_eq!(get(&mut client, path).status, 404, "{path}");
        }
        let server = tree.serve::<B>();
        assert_eq!(get(&mut server.connect(), "/about.html").text(), "about page");
    }

    fn missing_and_hidden_files_are_404<B>() {
        let tree = site();
        let server = tree.serve::<B>();
        let mut client = server.connect();
        for path in ["/none", "/a.txt/", "/a.txt/b", "/sub/none", "/.hidden", "/.git/config", "/.git/", "/%2egit/config"] {
            assert_eq!(get(&mut client, path).status, 404, "{path}");
        }
        let server = tree.serve_with::<B>(Options::default().hidden(true));
        let mut client = server.connect();
        assert_eq!(get(&mut client, "/.git/config").text(), "hidden");
    }

    fn unsupported_methods_are_rejected<B>() {
        let tree = site();
        let server = tree.serve::<B>();
        let mut client = server.connect();
        let response = request(&mut client, "OPTIONS", "/a.txt", "");
        assert_eq!((response.status, response.header("allow")), (204, Some("GET, HEAD, OPTIONS")));
        for method in ["PUT", "DELETE", "TRACE"] {
            let response = request(&mut client, method, "/a.txt", "");
            assert_eq!((response.status, response.header("allow")), (405, Some("GET, HEAD, OPTIONS")), "{method}");
        }
        assert_eq!(request(&mut client, "BREW", "/a.txt", "").status, 501);
        // The response does not wait for the body.
        assert_eq!(request(&mut client, "POST", "/a.txt", "Content-Length: 5\r\n").status, 405);
    }

    fn a_directory_can_be_mounted_below_a_route<B>() {
        let tree = site();
        let files = Files::new(tree.path()).expect("open directory");
        let server = serve::<B, _>(move || {
            let inner = Router::new().get("/", |_| "inner").mount("/deep", files.clone());
            let router = Router::new().get("/", |_| "hello").get("/files/own", |_| "own");
            HttpServer::with(router.mount("/files", files).mount("/nest", inner))
        });
        let mut client = server.connect();
        for (path, text) in [
            ("/", "hello"),
            ("/files/own", "own"),
            ("/files/", "<p>home"),
            ("/files/a.txt", "text\n"),
            ("/files/sub/", "<p>sub"),
            ("/nest", "inner"),
            ("/nest/deep/a.txt", "text\n"),
        ] {
            assert_eq!(get(&mut client, path).text(), text, "{path}");
        }
        for (path, location) in [("/files?x", "./files/?x"), ("/files/sub", "./sub/"), ("/nest/deep", "./deep/"), ("/./f%69les", "./files/")] {
            assert_eq!(get(&mut client, path).header("location"), Some(location), "{path}");
        }
        assert_eq!(get(&mut client, "/filesystem").status, 404);
        assert_eq!(request(&mut client, "PUT", "/files/a.txt", "").status, 405);
        // A Location that begins with two slashes would redirect to another host.
        assert_eq!(get(&mut client, "//files//sub").header("location"), Some("./sub/"));
    }

    fn a_guarded_mount_cannot_be_bypassed_by_another_spelling<B>() {
        let tree = Tree::new(&[("private@home/s.txt", "secret"), ("a.txt", "text\n")]);
        let below = tree.path().join("private@home");
        let all = Files::new(tree.path()).expect("open directory");
        let guarded = Files::new(below).expect("open directory");
        let server = serve::<B, _>(move || {
            let guarded = layers::guard(guarded, |_: &RequestHead<'_>| Some(StatusCode::UNAUTHORIZED.into()));
            HttpServer::with(Router::new().mount("/private@home", guarded).mount("/", all))
        });
        let mut client = server.connect();
        assert_eq!(get(&mut client, "/a.txt").text(), "text\n");
        for path in [
            "/private@home/s.txt",
            "/%70rivate@home/s.txt",
            "/%70%72%69%76%61%74%65%40%68%6f%6D%65/s.txt",
            "//private@home/s.txt",
            "///priv%61te%40home///s.txt",
            "http://x//private@home/%73.txt",
            "/private%40home",
            "//private@home//",
            "/./private@home/s.txt",
            "/%2e/private@home/s.txt",
            "/.//%2E/./priv%61te@home/./s.txt",
            "/private@home/.",
            "/private@home/%2e",
        ] {
            assert_eq!(get(&mut client, path).status, 401, "{path}");
        }
        for path in ["/.private@home/s.txt", "/a/../private@home/s.txt", "/%2Fprivate@home/s.txt", "/private@home%2Fs.txt"] {
            assert_eq!(get(&mut client, path).status, 404, "{path}");
        }
        // Any single byte of the path may be percent-encoded.
        let path = "/private@home/s.txt";
        for (at, byte) in path.bytes().enumerate().filter(|&(_, byte)| byte != b'/') {
            let path = format!("{}%{byte:02x}{}", &path[..at], &path[at + 1..]);
            assert_eq!(get(&mut client, &path).status, 401, "{path}");
        }
    }
}

#[test]
fn the_command_serves_a_directory_and_prints_its_url() {
    let tree = site();
    let directory = tree.path();
    let directory = directory.to_str().expect("UTF-8");
    for backend in backends() {
        let server = Running::start(&["files", directory, "-p", "0", "-b", backend, "--index", "a.txt,x"]);
        assert!(
            server.line.starts_with(&format!("serverd: serving {directory} on http://127.0.0.1:")),
            "{}",
            server.line
        );
        assert_eq!(get(&mut server.connect(), "/").text(), "text\n");
    }
    for (arguments, expected) in
        [(["files", "/no/such"], "cannot serve /no/such: "), (["files", "Cargo.toml"], "cannot serve Cargo.toml: ")]
    {
        let (code, text) = run(&arguments);
        assert_eq!((code, text.lines().count()), (Some(1), 1), "{text}");
        assert!(text.contains(expected) && text.contains("specify a readable directory"), "{text}");
    }
    assert_eq!(run(&["files", "--index", "a/b"]).0, Some(2));
}
