//! `serverd cert`: the local authority, its certificates, and the protection of private keys.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::{ClientConfig, RootCertStore};
use serverd::tls::Certificate;

use crate::process::{Running, serverd};
use crate::tls::TlsClient;

/// A home directory without an authority, and a directory for certificates.
struct Home(tempfile::TempDir);

impl Home {
    fn new() -> Self {
        let home = Home(tempfile::tempdir().expect("a directory"));
        std::fs::create_dir(home.path("out")).expect("a writable directory");
        home
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// The directory of the authority, on each system.
    fn authority(&self) -> PathBuf {
        let data = if cfg!(target_vendor = "apple") { "Library/Application Support" } else { "data" };
        self.path(data).join("serverd").join("ca")
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = serverd(arguments);
        command.env("HOME", self.0.path());
        command.env("XDG_DATA_HOME", self.path("data")).env("LOCALAPPDATA", self.path("data"));
        command
    }

    /// Returns the command `serverd cert`, which creates files in `out` unless the arguments name another directory.
    fn cert_command(&self, arguments: &[&str]) -> Command {
        let mut command = self.command(&[&["cert"], arguments].concat());
        if !arguments.iter().any(|argument| matches!(*argument, "--out" | "--print-ca")) {
            command.arg("--out").arg(self.path("out"));
        }
        command
    }

    /// Runs `serverd cert`, and returns its exit code, stdout and stderr.
    fn cert(&self, arguments: &[&str]) -> (Option<i32>, String, String) {
        let Output { status, stdout, stderr } = self.cert_command(arguments).output().expect("the binary runs");
        let text = |bytes| String::from_utf8(bytes).expect("valid UTF-8").replace("\r\n", "\n");
        (status.code(), text(stdout), text(stderr))
    }

    /// Runs `serverd cert` successfully, and returns what it prints.
    fn create(&self, arguments: &[&str]) -> String {
        let (code, stdout, stderr) = self.cert(arguments);
        assert_eq!((code, &*stderr), (Some(0), ""), "{stdout}");
        stdout
    }

    /// Starts a server with the certificate in `out`, named after `stem`.
    fn serve(&self, arguments: &[&str], stem: &str) -> Running {
        let path = |name: String| self.path("out").join(name).display().to_string();
        let (chain, key) = (path(format!("{stem}.pem")), path(format!("{stem}-key.pem")));
        let tls = ["--port", "0", "--tls-cert", &chain, "--tls-key", &key];
        Running::spawn(&mut self.command(&[arguments, &tls].concat()))
    }

    /// A client configuration that trusts the authority.
    fn trusting(&self) -> ClientConfig {
        let mut roots = RootCertStore::empty();
        let authority = CertificateDer::from_pem_file(self.authority().join("ca.pem")).expect("a certificate");
        roots.add(authority).expect("a certificate");
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
        builder.expect("versions").with_root_certificates(roots).with_no_client_auth()
    }
}

fn read(path: impl AsRef<Path>) -> String {
    std::fs::read_to_string(path).expect("a readable file")
}

#[test]
fn a_certificate_is_accepted_by_clients_that_trust_the_authority() {
    let home = Home::new();
    let text = home.create(&["localhost", "*.example.test", "127.0.0.1", "::1", "LOCALHOST"]);
    let authority = home.authority().join("ca.pem");
    for part in [
        format!("Certificate: {} (valid until ", home.path("out").join("localhost+3.pem").display()),
        "Names: localhost, *.example.test, 127.0.0.1, ::1\n".into(),
        "which was created now".into(),
        authority.display().to_string(),
        "update-ca-certificates".into(),
        "--tls-cert ".into(),
    ] {
        assert!(text.contains(&part), "{part}: {text}");
    }
    assert_eq!(home.create(&["--print-ca"]).trim_end(), authority.display().to_string());
    let server = home.serve(&[], "localhost+3");
    for name in ["localhost", "a.example.test", "127.0.0.1", "::1"] {
        let mut client = TlsClient::connect_to(server.socket_addr(), &home.trusting(), name, usize::MAX);
        let (head, _) = client.send(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n").response();
        assert!(head.starts_with("HTTP/1.1 200 "), "{name}: {head}");
    }
    let port = server.socket_addr().port();
    let check = |host: &str| {
        let url = format!("https://{host}:{port}/");
        let ca = authority.display().to_string();
        home.command(&["check", &url, "--ca", &ca, "--min-days", "800"]).status().expect("the binary runs").code()
    };
    assert_eq!(check("127.0.0.1"), Some(0));
    let mut refused = TlsClient::connect_to(server.socket_addr(), &home.trusting(), "a.b.example.test", usize::MAX);
    assert!(refused.try_send(b"GET").is_err(), "a wildcard covers one level");
}

#[test]
fn the_authority_is_created_once_and_its_certificates_are_renewed() {
    let home = Home::new();
    home.create(&["a.test"]);
    let (authority, first) = (read(home.authority().join("ca.pem")), read(home.path("out/a.test.pem")));
    let text = home.create(&["a.test"]);
    assert!(!text.contains("created now"), "{text}");
    assert_eq!(read(home.authority().join("ca.pem")), authority);
    assert_ne!(read(home.path("out/a.test.pem")), first, "renewed");
    let new = home.path("out/new/directory");
    home.create(&["b.test", "--out", &new.display().to_string()]);
    assert!(new.join("b.test-key.pem").exists());
    // No key of the authority, and no temporary file.
    let mut names: Vec<_> = std::fs::read_dir(home.path("out"))
        .expect("a directory")
        .map(|entry| entry.expect("an entry").file_name())
        .collect();
    names.sort();
    assert_eq!(names, ["a.test-key.pem", "a.test.pem", "new"]);
}

#[test]
fn other_files_are_overwritten_only_with_force() {
    let home = Home::new();
    for name in ["a.test.pem", "a.test-key.pem"] {
        let path = home.path("out").join(name);
        std::fs::write(&path, "precious").expect("a writable directory");
        let (code, _, stderr) = home.cert(&["a.test"]);
        assert_eq!(code, Some(1));
        assert!(stderr.contains(name) && stderr.contains("--force"), "{stderr}");
        assert_eq!(read(&path), "precious");
        std::fs::remove_file(&path).expect("a file");
    }
    // Another key beside a certificate of this authority, and a key without one.
    home.create(&["a.test"]);
    let [certificate, key] = ["out/a.test.pem", "out/a.test-key.pem"].map(|name| home.path(name));
    std::fs::copy("tests/tls/b.key", &key).expect("a writable directory");
    let (code, _, stderr) = home.cert(&["a.test"]);
    assert_eq!((code, read(&key)), (Some(1), read("tests/tls/b.key")));
    assert!(stderr.contains("a.test-key.pem exists and is not the private key of ") && stderr.contains("--force"));
    std::fs::remove_file(&certificate).expect("a file");
    let (code, _, stderr) = home.cert(&["a.test"]);
    assert_eq!((code, read(&key)), (Some(1), read("tests/tls/b.key")));
    assert!(stderr.contains("a.test-key.pem exists, but its certificate ") && stderr.contains("remove the key"));
    home.create(&["a.test", "--force"]);
    std::fs::remove_file(&key).expect("a file");
    home.create(&["a.test"]);
    // The certificate of another authority.
    let other = Home::new();
    other.create(&["a.test"]);
    std::fs::copy(other.path("out/a.test.pem"), home.path("out/a.test.pem")).expect("a writable directory");
    assert_eq!(home.cert(&["a.test"]).0, Some(1));
    home.create(&["a.test", "--force"]);
    home.create(&["a.test"]);
    let directory = home.authority().display().to_string();
    let (code, _, stderr) = home.cert(&["ca", "--force", "--out", &directory]);
    assert_eq!(code, Some(1));
    assert!(stderr.contains("belongs to the authority"), "{stderr}");
}

#[test]
fn a_damaged_or_missing_authority_is_explained() {
    let home = Home::new();
    let (code, _, stderr) = home.cert(&["--print-ca"]);
    assert_eq!(code, Some(1));
    assert!(stderr.contains("no local certificate authority yet"), "{stderr}");
    home.create(&["a.test"]);
    let key = home.authority().join("ca-key.pem");
    let text = read(&key);
    std::fs::remove_file(&key).expect("a file");
    let (code, _, stderr) = home.cert(&["a.test"]);
    assert_eq!(code, Some(1));
    assert!(stderr.contains("ca-key.pem") && stderr.contains("restore it"), "{stderr}");
    std::fs::write(&key, text.replace("PRIVATE", "PUBLIC")).expect("a writable directory");
    let (code, _, stderr) = home.cert(&["a.test"]);
    assert_eq!(code, Some(1));
    assert!(stderr.contains("no private key found"), "{stderr}");
}

#[test]
fn a_wildcard_for_a_top_level_domain_is_created_with_a_warning() {
    let home = Home::new();
    home.create(&["*.example.test"]);
    for name in ["*.test", "*.localhost"] {
        let (code, _, stderr) = home.cert(&["a.test", name]);
        assert_eq!(code, Some(0));
        assert!(stderr.contains(&format!("{name}: browsers reject a wildcard")), "{stderr}");
        std::fs::remove_file(home.path("out/a.test+1.pem")).expect("a file");
        std::fs::remove_file(home.path("out/a.test+1-key.pem")).expect("a file");
    }
}

#[test]
fn a_file_in_place_of_the_directory_of_the_authority_is_explained() {
    let home = Home::new();
    let file = home.authority().parent().expect("a parent").to_owned();
    std::fs::create_dir_all(file.parent().expect("a parent")).expect("a writable directory");
    std::fs::write(&file, "").expect("a writable directory");
    for arguments in [&["a.test"][..], &["--print-ca"]] {
        let (code, _, stderr) = home.cert(arguments);
        assert_eq!(code, Some(1));
        assert!(stderr.contains(&format!("{} is not a directory", file.display())), "{stderr}");
    }
}

#[test]
fn processes_that_start_at_once_share_one_authority() {
    let home = Home::new();
    let names = ["a.test", "b.test", "c.test", "d.test"];
    let children = names.map(|name| home.cert_command(&[name]).spawn().expect("the binary starts"));
    for child in children {
        let output = child.wait_with_output().expect("it exits");
        assert!(output.status.success(), "{output:?}");
    }
    // All of them are certificates of the authority, since they are renewed without --force.
    for name in names {
        home.create(&[name]);
    }
    let parent = home.authority().parent().expect("a parent").to_owned();
    assert_eq!(std::fs::read_dir(parent).expect("a directory").count(), 1, "no temporary directory");
}

#[test]
fn processes_that_create_or_renew_one_certificate_at_once_leave_a_matching_pair() {
    let home = Home::new();
    for round in 0..4 {
        let children: Vec<_> =
            (0..4).map(|_| home.cert_command(&["r.test"]).spawn().expect("the binary starts")).collect();
        for child in children {
            let output = child.wait_with_output().expect("it exits");
            assert!(output.status.success(), "round {round}: {output:?}");
        }
        let [certificate, key] = ["out/r.test.pem", "out/r.test-key.pem"].map(|name| home.path(name));
        Certificate::from_pem_files(&certificate, &key).expect("they match");
    }
    assert_eq!(std::fs::read_dir(home.path("out")).expect("a directory").count(), 2, "no temporary file");
}

#[test]
#[cfg(unix)]
fn private_keys_are_readable_for_their_owner_only() {
    use std::os::unix::fs::PermissionsExt;
    let home = Home::new();
    home.create(&["a.test"]);
    home.create(&["a.test"]);
    let mode = |path: PathBuf| std::fs::metadata(path).expect("a file").permissions().mode() & 0o777;
    assert_eq!(mode(home.path("out/a.test-key.pem")), 0o600);
    assert_eq!((mode(home.authority()), mode(home.authority().join("ca-key.pem"))), (0o700, 0o600));
}

#[test]
fn private_keys_below_the_served_directory_are_not_served() {
    let home = Home::new();
    home.create(&["localhost"]);
    let root = home.0.path().display().to_string();
    let key = home.authority().join("ca-key.pem");
    std::fs::hard_link(&key, home.path("link.pem")).expect("hard links");
    let server = home.serve(&["files", &root, "--hidden"], "localhost");
    let get = |path: &str| {
        let mut client = TlsClient::connect(server.socket_addr(), &home.trusting());
        client.send(format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").as_bytes());
        String::from_utf8_lossy(&client.read_to_end().expect("an orderly end")).into_owned()
    };
    let directory = home.authority();
    let directory = directory.strip_prefix(home.0.path()).expect("below the home directory");
    let directory = format!("/{}/", directory.display()).replace('\\', "/").replace(' ', "%20");
    assert!(get(&format!("{directory}ca.pem")).starts_with("HTTP/1.1 200 "));
    let mut hidden = vec![format!("{directory}ca-key.pem"), "/out/localhost-key.pem".into()];
    // Links are recognized by device and inode, which Windows does not have.
    hidden.extend(cfg!(unix).then(|| "/link.pem".to_owned()));
    for path in hidden {
        assert!(get(&path).starts_with("HTTP/1.1 404 "), "{path}");
    }
    for (path, shown, missing) in
        [(&*directory, "ca.pem", "ca-key.pem"), ("/out/", "localhost.pem", "localhost-key.pem")]
    {
        let listing = get(path);
        assert!(listing.contains(shown) && !listing.contains(missing), "{listing}");
    }
    #[cfg(unix)]
    {
        let log = server.stop_and_log();
        let (_, keys) = log.split_once("private keys in the served directory are not served").expect("a warning");
        assert!(keys.contains("localhost-key.pem") && keys.contains("ca-key.pem"), "{log}");
    }
}

#[test]
#[cfg(unix)]
fn the_server_warns_about_private_keys_that_it_serves() {
    let home = Home::new();
    home.create(&["used.test"]);
    home.create(&["other.test"]);
    std::fs::copy("tests/tls/a.key", home.path("out/.hidden.key")).expect("a writable directory");
    let root = home.path("out").display().to_string();
    let log = home.serve(&["files", &root], "used.test").stop_and_log();
    let warning = log.lines().find(|line| line.contains("private keys are served")).expect("a warning");
    assert!(warning.contains("other.test-key.pem"), "{log}");
    assert!(["used.test", "hidden", "other.test.pem"].iter().all(|name| !warning.contains(name)), "{log}");
    std::fs::remove_file(home.path("out/other.test-key.pem")).expect("a file");
    let log = home.serve(&["files", &root], "used.test").stop_and_log();
    assert!(!log.contains("private keys are served"), "{log}");
}

#[test]
#[cfg(unix)]
fn openssl_and_curl_accept_the_certificate() {
    let home = Home::new();
    home.create(&["localhost", "127.0.0.1"]);
    let (ca, leaf) = (home.authority().join("ca.pem"), home.path("out/localhost+1.pem"));
    let mut verify = Command::new("openssl");
    verify
        .args(["verify", "-x509_strict", "-purpose", "sslserver", "-verify_ip", "127.0.0.1", "-CAfile"])
        .args([&ca, &leaf]);
    match verify.output() {
        Ok(output) => assert!(output.status.success(), "{output:?}"),
        Err(error) => println!("skipped: cannot run openssl ({error})"),
    }
    let server = home.serve(&[], "localhost+1");
    let mut curl = Command::new("curl");
    curl.args(["-sS", "--noproxy", "*", "--cacert"]).arg(&ca).arg(format!("https://{}/", server.address()));
    match curl.output() {
        Ok(output) => assert_eq!(output.stdout, b"this is response from server", "{output:?}"),
        Err(error) => println!("skipped: cannot run curl ({error})"),
    }
}
