//! Mutual TLS: certificates of clients, the identity that handlers and the access log get, and changed authorities.

use std::io::{self, Write};
use std::path::Path;

use base64::Engine;
use rcgen::{CertifiedIssuer, ExtendedKeyUsagePurpose, KeyPair};
use rustls::pki_types::PrivateKeyDer;
use rustls::{ClientConfig, HandshakeKind, SupportedProtocolVersion};
use serverd::tls::{Certificate, ClientAuth, Tls};
use serverd::{HttpServer, LoopLimits, Request, Response, Timeouts};

use crate::harness::{Backend, Server, on_every_backend, trusting, wait_for};
use crate::process::{Running, run, serverd};
use crate::tls::{TlsClient, certified, serve_tls};

const VERSIONS: [&SupportedProtocolVersion; 2] = [&rustls::version::TLS13, &rustls::version::TLS12];

/// A certificate authority for clients.
struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    fn new(name: &str) -> Self {
        Self::with(name, |_| ())
    }

    /// Creates one that has expired.
    fn expired(name: &str) -> Self {
        Self::with(name, |params| params.not_after = rcgen::date_time_ymd(2021, 1, 1))
    }

    fn with(name: &str, change: impl FnOnce(&mut rcgen::CertificateParams)) -> Self {
        let mut params = rcgen::CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        change(&mut params);
        let key = KeyPair::generate().expect("random numbers");
        Authority(CertifiedIssuer::self_signed(params, key).expect("valid parameters"))
    }

    fn pem(&self) -> Vec<u8> {
        pem("CERTIFICATE", self.0.der())
    }

    /// Issues a certificate for Alice.
    fn issue(&self) -> Identity {
        self.issue_with(|_| ())
    }

    fn issue_with(&self, change: impl FnOnce(&mut rcgen::CertificateParams)) -> Identity {
        let mut params = rcgen::CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(rcgen::DnType::OrganizationName, "Example Inc");
        params.distinguished_name.push(rcgen::DnType::CommonName, "Alice");
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        change(&mut params);
        let key = KeyPair::generate().expect("random numbers");
        let certificate = params.signed_by(&key, &self.0).expect("valid parameters").der().to_vec();
        Identity { certificate, key: key.serialize_der() }
    }
}

/// The subject of Alice's certificate.
const SUBJECT: &str = "CN=Alice,O=Example Inc";

/// A client's certificate and its private key, in DER.
struct Identity {
    certificate: Vec<u8>,
    key: Vec<u8>,
}

impl Identity {
    fn fingerprint(&self) -> String {
        let chain = pem("CERTIFICATE", &self.certificate);
        Certificate::from_pem(&chain, &pem("PRIVATE KEY", &self.key)).expect("they match").fingerprint()
    }

    /// Writes both to files, and returns their paths.
    fn write(&self, directory: &Path) -> [String; 2] {
        [("alice.pem", "CERTIFICATE", &self.certificate), ("alice.key", "PRIVATE KEY", &self.key)]
            .map(|(name, label, der)| write(&directory.join(name), &pem(label, der)))
    }
}

fn pem(label: &str, der: &[u8]) -> Vec<u8> {
    let text = base64::engine::general_purpose::STANDARD.encode(der);
    format!("-----BEGIN {label}-----\n{text}\n-----END {label}-----\n").into_bytes()
}

fn write(path: &Path, contents: &[u8]) -> String {
    std::fs::write(path, contents).expect("the directory is writable");
    path.to_str().expect("UTF-8").to_owned()
}

/// A client configuration that trusts the server, with a certificate of its own.
fn client(
    server: &Certificate,
    version: &'static SupportedProtocolVersion,
    identity: Option<&Identity>,
) -> ClientConfig {
    let mut config = trusting(server, &[version]);
    if let Some(Identity { certificate, key }) = identity {
        let (chain, key) = (vec![certificate.clone().into()], PrivateKeyDer::Pkcs8(key.clone().into()));
        let certified = rustls::sign::CertifiedKey::from_der(chain, key, config.crypto_provider()).expect("they match");
        config.client_auth_cert_resolver = std::sync::Arc::new(rustls::sign::SingleCertAndKey::from(certified));
    }
    config
}

/// Serves the identity of each client.
fn serve<B: Backend>(tls: &Tls) -> Server {
    serve_tls::<B, _>(tls, Timeouts::default(), LoopLimits::default(), || {
        HttpServer::new(|request: &Request<'_>| {
            let client = request.client_certificate();
            let info = request.tls().expect("a session").client_certificate;
            assert_eq!(info.as_deref(), client);
            Response::text(
                client.map_or("nobody".into(), |client| format!("{} {}", client.subject, client.fingerprint)),
            )
        })
    })
}

/// Makes a request on a new connection. Returns the response, and the kind of handshake.
fn get(server: &Server, config: &ClientConfig) -> io::Result<(String, HandshakeKind)> {
    let mut client = TlsClient::connect(server.address, config);
    // With TLS 1.3, an alert about the certificate follows the handshake.
    client.stream.write_all(b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
    let response = String::from_utf8(client.read_to_end()?).expect("UTF-8");
    let body = response.rsplit("\r\n\r\n").next().unwrap_or_default().to_owned();
    Ok((body, client.stream.conn.handshake_kind().expect("a complete handshake")))
}

fn refusal(server: &Server, config: &ClientConfig) -> String {
    get(server, config).expect_err("the client is refused").to_string()
}

on_every_backend! {
    fn clients_need_a_valid_certificate_if_it_is_required<B>() {
        let (certificate, tls, _) = certified(&["localhost"]);
        let (authority, other) = (Authority::new("ours"), Authority::new("theirs"));
        let tls = tls.client_ca(&authority.pem(), ClientAuth::Required).expect("an authority");
        let server = serve::<B>(&tls);
        let (alice, stranger) = (authority.issue(), other.issue());
        let expired = authority.issue_with(|params| params.not_after = rcgen::date_time_ymd(2020, 1, 1));
        let for_servers = authority.issue_with(|params| {
            params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        });
        for version in VERSIONS {
            let with = |identity| client(&certificate, version, identity);
            for (identity, alert) in [
                (None, "CertificateRequired"),
                (Some(&stranger), "UnknownCA"),
                (Some(&expired), "CertificateExpired"),
                (Some(&for_servers), "UnsupportedCertificate"),
            ] {
                let error = refusal(&server, &with(identity));
                assert!(error.contains(alert), "{version:?} {alert}: {error}");
            }
            let expected = format!("{SUBJECT} {}", alice.fingerprint());
            assert_eq!(get(&server, &with(Some(&alice))).expect("a response").0, expected);
        }
        let counters = server.drain();
        assert_eq!((counters.handshakes, counters.failed_handshakes), (2, 8));
    }

    fn an_authority_that_has_expired_is_not_used<B>() {
        let (certificate, tls, _) = certified(&["localhost"]);
        let (authority, expired) = (Authority::new("ours"), Authority::expired("theirs"));
        let both = [authority.pem(), expired.pem()].concat();
        let server = serve::<B>(&tls.client_ca(&both, ClientAuth::Required).expect("authorities"));
        for version in VERSIONS {
            let with = |authority: &Authority| client(&certificate, version, Some(&authority.issue()));
            assert!(get(&server, &with(&authority)).expect("a response").0.starts_with(SUBJECT));
            let error = refusal(&server, &with(&expired));
            assert!(error.contains("CertificateUnknown"), "{version:?}: {error}");
        }
        let counters = server.drain();
        assert_eq!((counters.handshakes, counters.failed_handshakes), (2, 2));
    }

    fn clients_may_have_a_valid_certificate_if_it_is_optional<B>() {
        let (certificate, tls, _) = certified(&["localhost"]);
        let (authority, other) = (Authority::new("ours"), Authority::new("theirs"));
        let tls = tls.client_ca(&authority.pem(), ClientAuth::Optional).expect("an authority");
        let server = serve::<B>(&tls);
        for version in VERSIONS {
            let with = |identity: Option<Identity>| client(&certificate, version, identity.as_ref());
            assert_eq!(get(&server, &with(None)).expect("a response").0, "nobody");
            assert!(get(&server, &with(Some(authority.issue()))).expect("a response").0.starts_with(SUBJECT));
            let error = refusal(&server, &with(Some(other.issue())));
            assert!(error.contains("UnknownCA"), "{error}");
        }
    }

    fn a_resumed_session_has_the_identity_of_the_first_and_ends_with_its_authority<B>() {
        let (certificate, tls, _) = certified(&["localhost"]);
        let (first, second) = (Authority::new("first"), Authority::new("second"));
        let alice = first.issue();
        let open = tls.client_ca(&first.pem(), ClientAuth::Optional).expect("an authority");
        let tls = open.client_ca(&first.pem(), ClientAuth::Required).expect("an authority");
        let (server, open_server) = (serve::<B>(&tls), serve::<B>(&open));
        for version in VERSIONS {
            tls.replace_client_ca(&first.pem()).expect("an authority");
            let config = client(&certificate, version, Some(&alice));
            for kind in [HandshakeKind::Full, HandshakeKind::Resumed] {
                let (body, found) = get(&server, &config).expect("a response");
                assert!(body.starts_with(SUBJECT) && found == kind, "{body} {found:?}");
            }
            // The client has a ticket still, but not an acceptable certificate.
            tls.replace_client_ca(&second.pem()).expect("an authority");
            let error = refusal(&server, &config);
            assert!(error.contains("UnknownCA"), "{version:?}: {error}");
            tls.replace_client_ca(&[first.pem(), second.pem()].concat()).expect("authorities");
            let (body, kind) = get(&server, &config).expect("a response");
            assert!(body.starts_with(SUBJECT) && kind == HandshakeKind::Full, "{body} {kind:?}");

            // A ticket from a listener that does not require a certificate.
            let anonymous = client(&certificate, version, None);
            assert_eq!(get(&open_server, &anonymous).expect("a response").0, "nobody");
            let error = refusal(&server, &anonymous);
            assert!(error.contains("CertificateRequired"), "{version:?}: {error}");
        }
    }
}

/// Starts a command that requires certificates of an authority whose file is in `directory`.
fn start(directory: &Path, authority: &Authority, arguments: &[&str]) -> Running {
    let authorities = write(&directory.join("ca.pem"), &authority.pem());
    let tls = ["--port", "0", "--tls-cert", "tests/tls/a.pem", "--tls-key", "tests/tls/a.key"];
    Running::start(&[arguments, &tls, &["--tls-client-ca", &authorities]].concat())
}

/// Runs a client command. Returns its exit code, and all of its output.
fn run_client(arguments: &[&str]) -> (Option<i32>, String) {
    let output = serverd(arguments).output().expect("the binary runs");
    (output.status.code(), String::from_utf8([output.stdout, output.stderr].concat()).expect("UTF-8"))
}

#[test]
fn the_commands_present_and_require_certificates_of_clients() {
    let directory = tempfile::tempdir().expect("a directory");
    let (authority, log) = (Authority::new("ours"), directory.path().join("log"));
    let alice = authority.issue();
    let [chain, key] = &alice.write(directory.path());
    let log_path = log.to_str().expect("UTF-8");
    let whoami = start(directory.path(), &authority, &["whoami", "--access-log", log_path, "--log-format", "json"]);
    let echo = start(directory.path(), &authority, &["echo"]);
    let (https, tls) = (format!("https://{}/", whoami.address()), format!("tls://{}", echo.address()));
    let certificate = ["--insecure", "--cert", chain, "--key", key];
    // Another authority with the same name.
    let other = Authority::new("ours").issue();
    let stranger = tempfile::tempdir().expect("a directory");
    let [other_chain, other_key] = &other.write(stranger.path());
    let strange = ["--insecure", "--cert", other_chain, "--key", other_key];

    let (code, output) = run_client(&[&["check", &https, "--print", "body"], &certificate[..]].concat());
    assert_eq!(code, Some(0), "{output}");
    let expected = format!("client certificate: {SUBJECT}, SHA-256 {}\n", alice.fingerprint());
    assert!(output.contains("\ntls: 1.3, TLS_") && output.contains(&expected), "{output}");
    let (code, output) = run_client(&[&["check", &tls], &certificate[..]].concat());
    assert!(code == Some(0) && output.contains("expires on"), "{output}");
    let (code, output) = run_client(&[&["connect", &tls], &certificate[..]].concat());
    assert_eq!((code, output.as_str()), (Some(0), ""));
    for command in [&["check", &https][..], &["check", &tls], &["connect", &tls]] {
        for (arguments, reason) in [(&["--insecure"][..], "use --cert and --key"), (&strange, "does not trust")] {
            let (code, output) = run_client(&[command, arguments].concat());
            assert!(code == Some(1) && output.contains(reason), "{command:?} {arguments:?} {code:?} {output}");
        }
    }
    let members = format!(",\"client_subject\":\"{SUBJECT}\",\"client_sha256\":\"{}\"}}\n", alice.fingerprint());
    wait_for("the request is not logged", || std::fs::read_to_string(&log).is_ok_and(|text| text.ends_with(&members)));
}

#[test]
fn the_user_in_the_combined_log_is_the_subject_of_the_certificate() {
    let directory = tempfile::tempdir().expect("a directory");
    let (authority, log) = (Authority::new("ours"), directory.path().join("log"));
    let [chain, key] = &authority.issue().write(directory.path());
    let log_path = log.to_str().expect("UTF-8");
    let options = ["--access-log", log_path, "--log-format", "combined", "--tls-client-auth", "optional"];
    let server = start(directory.path(), &authority, &options);
    let url = format!("https://{}/", server.address());
    assert_eq!(run_client(&["check", &url, "--insecure"]).0, Some(0));
    assert_eq!(run_client(&["check", &url, "--insecure", "--cert", chain, "--key", key]).0, Some(0));
    let is_logged = |text: String| {
        let users: Vec<&str> = text.lines().filter_map(|line| line.split(' ').nth(2)).collect();
        users == ["-", "CN=Alice,O=Example\\x20Inc"]
    };
    wait_for("not both requests are logged", || std::fs::read_to_string(&log).is_ok_and(is_logged));
}

#[cfg(unix)]
#[test]
fn the_command_reads_the_authorities_of_clients_again() {
    let directory = tempfile::tempdir().expect("a directory");
    let (first, second) = (Authority::new("first"), Authority::new("second"));
    let [chain, key] = &second.issue().write(directory.path());
    let server = start(directory.path(), &first, &["echo"]);
    let target = format!("tls://{}", server.address());
    let check = || run_client(&["check", &target, "--insecure", "--cert", chain, "--key", key]).0;
    assert_eq!(check(), Some(1));
    write(&directory.path().join("ca.pem"), &second.pem());
    server.signal("HUP");
    wait_for("the authorities are not replaced", || check() == Some(0));
}

#[cfg(unix)]
#[test]
fn an_authority_that_has_expired_and_a_refused_client_are_logged() {
    let directory = tempfile::tempdir().expect("a directory");
    let authority = Authority::expired("ours");
    let [chain, key] = &authority.issue().write(directory.path());
    let server = start(directory.path(), &authority, &["whoami"]);
    let url = format!("https://{}/", server.address());
    let (code, output) = run_client(&["check", &url, "--insecure", "--cert", chain, "--key", key]);
    assert_eq!(code, Some(1), "{output}");
    assert!(output.contains("the server has rejected the client's certificate"), "{output}");
    let log = server.stop_and_log();
    let reason = "the certificate of the authority CN=ours has expired on 2021-01-01";
    assert!(log.contains(&format!("TLS: {reason}; it is not used")), "{log}");
    assert!(log.contains("refused 127.0.0.1:") && log.contains(&format!(": {reason}\n")), "{log}");
}

#[test]
fn a_mistake_in_the_options_is_explained() {
    let tls = ["--port", "0", "--tls"];
    let (code, stderr) = run(&[&tls[..], &["--tls-client-ca", "tests/tls/a.key"]].concat());
    assert_eq!(code, Some(1));
    assert!(stderr.contains("tests/tls/a.key: no certificate found"), "{stderr}");
    let (code, stderr) = run(&[&tls[..], &["--tls-client-ca", "tests/tls/absent.pem"]].concat());
    assert_eq!(code, Some(1));
    assert!(stderr.contains("cannot read tests/tls/absent.pem"), "{stderr}");
    let directory = tempfile::tempdir().expect("a directory");
    let [chain, _] = &Authority::new("ours").issue().write(directory.path());
    let (code, stderr) = run(&[&tls[..], &["--tls-client-ca", chain]].concat());
    assert_eq!(code, Some(1));
    assert!(
        stderr.contains("alice.pem: the certificate of CN=Alice,O=Example Inc is not one of an authority"),
        "{stderr}"
    );
}
