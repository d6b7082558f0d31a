//! The certificates of a server: read at start, and again when their files change or on SIGHUP.

use std::collections::{BTreeSet, HashMap};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, SystemTime};

use super::file_watch::{FileWatch, Wake};
use crate::tls::{
    Certificate, ClientAuth, Tls, TlsError, TlsVersion, file_hash, interface_addresses, is_rereadable, machine_name,
    read_pem,
};

/// Interval at which the files are checked for changes that the system does not report.
const CHECK_INTERVAL: Duration = Duration::from_secs(60);

/// Interval at which a certificate that expires soon is reported.
const WARNING_INTERVAL: Duration = Duration::from_secs(24 * 3600);

/// TLS of a server with worker threads.
///
/// # Examples
/// ```no_run
/// use serverd::server::{Config, StartError, TlsConfig};
///
/// fn main() -> Result<(), StartError> {
///     let tls = TlsConfig::from_files([("fullchain.pem", "key.pem")]);
///     Config::default().port(443).tls(tls).serve(|_| serverd::HttpServer::new(|_| "hello\n"))
/// }
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct TlsConfig {
    /// Files with a certificate chain and its private key, in PEM; see [`Certificate::from_pem`]. Clients that send a
    /// server name get the certificate with that name, all others the first. If empty, a self-signed certificate is
    /// created for the names and addresses of the server.
    pub files: Vec<(PathBuf, PathBuf)>,
    /// Oldest accepted version. Default: TLS 1.2.
    pub version_min: TlsVersion,
    /// Application protocols (ALPN). A client that offers protocols, but none of these, is refused. Default: `http/1.1`.
    pub alpn_protocols: Vec<String>,
    /// File with the certificates of authorities, in PEM. Clients are asked for a certificate that one of them has issued
    /// (mutual TLS); see [`Tls::client_ca`]. Default: none.
    pub client_ca: Option<PathBuf>,
    /// Whether clients without a certificate are accepted, if there is `client_ca`. Default: no.
    pub client_auth: ClientAuth,
    /// Port on which plain TCP connections are accepted too, on the same host and by the same applications, which
    /// distinguish them by [`Request::is_secure`](crate::RequestHead::is_secure); see
    /// [`layers::https_redirect`](crate::layers::https_redirect). Not used with
    /// [`Config::start_on`](super::Config::start_on). Default: none.
    pub plain_port: Option<u16>,
}

/// The hashes of the contents of files; `None` for one that cannot be read.
pub(super) type FileHashes = Vec<Option<[u8; 32]>>;

/// The end of the validity of a certificate.
pub(super) struct CertificateExpiry {
    /// The first DNS name; empty if it has none.
    pub(super) name: String,
    /// The file of the chain; empty for a self-signed certificate.
    pub(super) file: String,
    pub(super) not_after: SystemTime,
}

impl Default for TlsConfig {
    fn default() -> Self {
        TlsConfig {
            files: Vec::new(),
            version_min: TlsVersion::Tls12,
            alpn_protocols: vec!["http/1.1".into()],
            client_ca: None,
            client_auth: ClientAuth::Required,
            plain_port: None,
        }
    }
}

impl TlsConfig {
    setters! {
        files: Vec<(PathBuf, PathBuf)>,
        version_min: TlsVersion,
        alpn_protocols: Vec<String>,
        client_ca: Option<PathBuf>,
        client_auth: ClientAuth,
    }

    optional_setters! {
        plain_port: u16,
    }

    /// Uses the certificates and private keys in these files. They are read again on SIGHUP and when they change: after
    /// about a second on Linux, otherwise and on network file systems within a minute. If they cannot be used then, the
    /// previous certificates stay in use.
    pub fn from_files(pairs: impl IntoIterator<Item = (impl Into<PathBuf>, impl Into<PathBuf>)>) -> Self {
        let files = pairs.into_iter().map(|(chain, key)| (chain.into(), key.into())).collect();
        TlsConfig::default().files(files)
    }

    /// Reads or creates the certificates of a server that listens on these addresses of `host`.
    pub(super) fn open(&self, host: &str, addresses: &[SocketAddr]) -> Result<Tls, TlsError> {
        let certificates = if self.files.is_empty() {
            vec![Certificate::self_signed(names(host, addresses))?]
        } else {
            self.files.iter().for_each(|(_, key)| warn_if_readable(key));
            self.read()?
        };
        let protocols: Vec<&str> = self.alpn_protocols.iter().map(String::as_str).collect();
        let tls = Tls::new(certificates)?.version_min(self.version_min).alpn_protocols(&protocols);
        match self.read_client_ca()? {
            Some(pem) => tls.client_ca(&pem, self.client_auth).map_err(|error| self.name_client_ca(&error)),
            None => Ok(tls),
        }
    }

    fn read_client_ca(&self) -> Result<Option<Vec<u8>>, TlsError> {
        self.client_ca.as_deref().map(read_pem).transpose()
    }

    /// Adds the path of the authorities, if there is one, to an error in them.
    fn name_client_ca(&self, error: &TlsError) -> TlsError {
        let path = self.client_ca.as_ref().map(|path| format!("{}: ", path.display()));
        TlsError::new(format!("{}{error}", path.unwrap_or_default()))
    }

    /// Returns whether any files are used, which can change.
    pub(super) fn has_files(&self) -> bool {
        !self.files.is_empty() || self.client_ca.is_some()
    }

    /// Reads all files again, and uses them if all are in order.
    fn reload(&self, tls: &Tls) -> Result<(), TlsError> {
        if let Some(path) = self.paths().find(|path| path.exists() && !is_rereadable(path)) {
            return Err(TlsError::new(format!("{} is not a regular file, so it is not read again", path.display())));
        }
        let client_ca = self.read_client_ca()?;
        // A self-signed certificate stays in use.
        let certificates = if self.files.is_empty() { None } else { Some(self.read()?) };
        tls.update(certificates, client_ca.as_deref()).map_err(|error| self.name_client_ca(&error))
    }

    /// Reads all files. Logs warnings about the validity of the certificates.
    fn read(&self) -> Result<Vec<Certificate>, TlsError> {
        let read = |(chain, key): &(PathBuf, PathBuf)| {
            let certificate = Certificate::from_pem_files(chain, key)?;
            if let Some(warning) = certificate.validity_warning(SystemTime::now()) {
                log::warn!("TLS: {}: {warning}", chain.display());
            }
            Ok(certificate)
        };
        let certificates: Vec<Certificate> = self.files.iter().map(read).collect::<Result<_, _>>()?;
        for (name, [used, unused]) in repeated_names(&certificates) {
            let [used, unused] = [used, unused].map(|index| self.files[index].0.display());
            log::warn!("TLS: {used} and {unused} have the same name {name}; the latter is not used for it");
        }
        Ok(certificates)
    }

    fn paths(&self) -> impl Iterator<Item = &Path> {
        let pairs = self.files.iter().flat_map(|(chain, key)| [chain, key]);
        pairs.chain(&self.client_ca).map(PathBuf::as_path)
    }

    /// Returns the hashes of the contents of all files, to find changes.
    pub(super) fn hashes(&self) -> FileHashes {
        self.paths().map(file_hash).collect()
    }

    /// Returns the certificates in use: the first name, the file and the end of the validity of each.
    pub(super) fn expiries(&self, tls: &Tls) -> Vec<CertificateExpiry> {
        let describe = |(index, certificate): (usize, &Certificate)| CertificateExpiry {
            name: certificate.dns_names().first().cloned().unwrap_or_default(),
            file: self.files.get(index).map(|(chain, _)| chain.display().to_string()).unwrap_or_default(),
            not_after: certificate.not_after(),
        };
        tls.certificates().iter().enumerate().map(describe).collect()
    }

    /// Starts a thread that replaces the certificates when a file changes. `known` are the hashes from before the files were
    /// read. Returns a function that makes the thread read the files again at once; it ends when that is dropped.
    pub(super) fn watch(&self, tls: Tls, known: FileHashes) -> io::Result<impl Fn() + Send + Sync + use<>> {
        let (mut changes, waker) = FileWatch::new(self.paths())?;
        let mut watch = Watch { config: self.clone(), tls, known, warned: SystemTime::now() };
        let work = move || {
            // For changes since the start of the server.
            watch.check(false);
            loop {
                match changes.wait(CHECK_INTERVAL) {
                    Wake::Ended => return,
                    wake => watch.check(wake == Wake::Requested),
                }
            }
        };
        thread::Builder::new().name("certificates".into()).spawn(work)?;
        Ok(move || waker.wake())
    }
}

/// The state of the thread that reads certificates again.
struct Watch {
    config: TlsConfig,
    tls: Tls,
    known: FileHashes,
    /// When the validity was last checked.
    warned: SystemTime,
}

impl Watch {
    fn check(&mut self, is_requested: bool) {
        let hashes = self.config.hashes();
        let is_warning_due = self.warned.elapsed().is_ok_and(|elapsed| elapsed >= WARNING_INTERVAL);
        if !is_requested && hashes == self.known && !is_warning_due {
            return;
        }
        self.known = hashes;
        self.warned = SystemTime::now();
        // One of two files may have been replaced so far; then they do not match, and the next check finds the other.
        match self.config.reload(&self.tls) {
            Ok(()) => log::info!("TLS: read the certificates again"),
            Err(error) => log::error!("TLS: {error}; the previous certificates stay in use"),
        }
    }
}

/// Returns the names that several certificates have, with the first of these and another one.
fn repeated_names(certificates: &[Certificate]) -> Vec<(&str, [usize; 2])> {
    let (mut seen, mut repeated) = (HashMap::new(), Vec::new());
    for (index, certificate) in certificates.iter().enumerate() {
        for name in certificate.dns_names().iter().collect::<BTreeSet<_>>() {
            match *seen.entry(name.as_str()).or_insert(index) {
                first if first != index => repeated.push((name.as_str(), [first, index])),
                _ => {}
            }
        }
    }
    repeated
}

/// Returns the names and addresses for a self-signed certificate: those that the server was started with, and those of
/// this machine as far as the server listens on them.
fn names(host: &str, addresses: &[SocketAddr]) -> BTreeSet<String> {
    let mut names: BTreeSet<String> = addresses
        .iter()
        .map(SocketAddr::ip)
        .filter(|address| !address.is_unspecified())
        .map(|address| address.to_string())
        .collect();
    if host.parse::<IpAddr>().is_err() && host.is_ascii() {
        names.insert(host.trim_matches(['[', ']']).to_owned());
    }
    let is_any = |address: &SocketAddr| address.ip().is_unspecified();
    if addresses.iter().any(|address| is_any(address) || address.ip().is_loopback()) {
        names.insert("localhost".into());
    }
    if addresses.iter().any(is_any) {
        // A listener on all IPv6 addresses accepts IPv4, too.
        let is_covered = |address: &IpAddr| address.is_ipv4() || addresses.iter().any(SocketAddr::is_ipv6);
        names.extend(interface_addresses().iter().filter(|address| is_covered(address)).map(IpAddr::to_string));
        names.extend(machine_name());
    }
    names.retain(|name| !name.is_empty());
    names
}

/// Warns about a private key that all users of the system can read. It is used nevertheless: Kubernetes mounts secrets
/// this way.
#[cfg(unix)]
fn warn_if_readable(key: &Path) {
    use std::os::unix::fs::MetadataExt;
    if std::fs::metadata(key).is_ok_and(|metadata| metadata.mode() & 0o004 != 0) {
        log::warn!("TLS: {} can be read by all users of this system; use chmod o-r", key.display());
    }
}

/// Does nothing: Windows has access control lists instead.
#[cfg(not(unix))]
fn warn_if_readable(_: &Path) {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_self_signed_certificate_has_the_names_of_the_listeners() {
        let names = |host: &str, address: &str| -> Vec<String> {
            super::names(host, &[address.parse().unwrap()]).into_iter().collect()
        };
        assert_eq!(names("127.0.0.1", "127.0.0.1:1"), ["127.0.0.1", "localhost"]);
        assert_eq!(names("192.0.2.7", "192.0.2.7:1"), ["192.0.2.7"]);
        assert_eq!(names("example.org", "[2001:db8::7]:1"), ["2001:db8::7", "example.org"]);
        let (all, ipv4) = (names("::", "[::]:1"), names("0.0.0.0", "0.0.0.0:1"));
        let interfaces = interface_addresses();
        assert!(!interfaces.is_empty());
        for address in interfaces {
            let shown = address.to_string();
            assert!(all.contains(&shown), "{shown} {all:?}");
            assert_eq!(ipv4.contains(&shown), address.is_ipv4(), "{shown} {ipv4:?}");
        }
        for names in [all, ipv4] {
            assert!(names.iter().any(|name| name == "localhost"), "{names:?}");
            assert!(!names.iter().any(|name| name == "::" || name == "0.0.0.0"), "{names:?}");
            assert!(Certificate::self_signed(names).is_ok());
        }
    }

    #[test]
    fn a_name_of_several_certificates_is_found() {
        let certificates = [&["a", "a", "b"][..], &["c"], &["c", "b", "*.b"], &["d", "B"]]
            .map(|names| Certificate::self_signed(names.iter().copied()).unwrap());
        assert_eq!(repeated_names(&certificates), [("b", [0, 2]), ("c", [1, 2]), ("b", [0, 3])]);
        assert_eq!(repeated_names(&certificates[..2]), []);
    }

    /// A certificate and its key, in a temporary directory.
    struct Files {
        chain: PathBuf,
        key: PathBuf,
        _directory: tempfile::TempDir,
    }

    impl Files {
        fn new() -> (Self, TlsConfig) {
            let directory = tempfile::tempdir().unwrap();
            let (chain, key) = (directory.path().join("chain.pem"), directory.path().join("key.pem"));
            copy("a.pem", &chain);
            copy("a.key", &key);
            let config = TlsConfig::from_files([(&chain, &key)]);
            (Files { chain, key, _directory: directory }, config)
        }

        /// Replaces both files.
        fn renew(&self) {
            copy("b.pem", &self.chain);
            copy("b.key", &self.key);
        }
    }

    fn copy(name: &str, path: &Path) {
        std::fs::copy(format!("tests/tls/{name}"), path).unwrap();
    }

    /// Waits until another certificate is used, but not for the check at regular intervals.
    fn wait_for_another(tls: &Tls, first: &str) {
        let start = std::time::Instant::now();
        while tls.fingerprint() == first {
            assert!(start.elapsed() < CHECK_INTERVAL, "the change was not noticed");
            thread::sleep(Duration::from_millis(10));
        }
    }

    #[test]
    fn a_broken_pair_of_files_keeps_the_previous_certificates() {
        let (files, config) = Files::new();
        let tls = config.open("localhost", &[]).unwrap();
        let mut watch =
            Watch { config: config.clone(), tls: tls.clone(), known: config.hashes(), warned: SystemTime::now() };
        let print = || tls.fingerprint();
        let first = print();
        copy("b.pem", &files.chain);
        watch.check(true);
        assert_eq!(print(), first, "the key does not match yet");
        // The time of the previous key, which has the same length.
        let modified = std::fs::metadata(&files.key).unwrap().modified().unwrap();
        copy("b.key", &files.key);
        std::fs::File::options().write(true).open(&files.key).unwrap().set_modified(modified).unwrap();
        watch.check(false);
        assert_ne!(print(), first, "the change was noticed");
        std::fs::remove_file(&files.key).unwrap();
        let before = print();
        watch.check(true);
        assert_eq!(print(), before);
        let error = config.open("localhost", &[]).unwrap_err().to_string();
        assert!(error.starts_with("cannot read "), "{error}");
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_pipe_is_read_at_the_start_and_never_waited_for_later() {
        let (files, config) = Files::new();
        let key = std::fs::read(&files.key).unwrap();
        std::fs::remove_file(&files.key).unwrap();
        rustix::fs::mkfifoat(rustix::fs::CWD, &files.key, rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR).unwrap();
        let path = files.key.clone();
        let writer = thread::spawn(move || std::fs::write(path, key));
        let known = config.hashes();
        let tls = config.open("localhost", &[]).unwrap();
        writer.join().unwrap().unwrap();
        let print = tls.fingerprint();
        let mut watch = Watch { config: config.clone(), tls: tls.clone(), known, warned: SystemTime::now() };
        watch.check(true);
        let error = config.reload(&tls).unwrap_err().to_string();
        assert!(error.ends_with("key.pem is not a regular file, so it is not read again"), "{error}");
        assert_eq!(tls.fingerprint(), print);
        std::fs::remove_file(&files.key).unwrap();
        files.renew();
        watch.check(false);
        assert_ne!(tls.fingerprint(), print, "regular files are read again");
    }

    #[test]
    fn a_certificate_that_was_renewed_during_the_start_is_used() {
        let (files, config) = Files::new();
        let (known, tls) = (config.hashes(), config.open("localhost", &[]).unwrap());
        let first = tls.fingerprint();
        files.renew();
        let _read = config.watch(tls.clone(), known).unwrap();
        wait_for_another(&tls, &first);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_renewed_certificate_is_used_before_the_next_regular_check() {
        let (files, config) = Files::new();
        let tls = config.open("localhost", &[]).unwrap();
        let first = tls.fingerprint();
        let _read = config.watch(tls.clone(), config.hashes()).unwrap();
        files.renew();
        wait_for_another(&tls, &first);
    }

    #[test]
    fn authorities_of_clients_are_read_again_with_a_self_signed_certificate() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("ca.pem");
        copy("a.pem", &file);
        let config = TlsConfig::default().client_ca(Some(file.clone()));
        let tls = config.open("localhost", &[]).unwrap();
        let print = tls.fingerprint();
        assert!(config.has_files());
        let before = config.hashes();
        copy("b.pem", &file);
        assert_ne!(config.hashes(), before);
        config.reload(&tls).unwrap();
        assert_eq!(tls.fingerprint(), print);
        std::fs::write(&file, "-----BEGIN CERTIFICATE-----\n").unwrap();
        let error = config.reload(&tls).unwrap_err().to_string();
        assert!(error.contains("ca.pem: not valid PEM"), "{error}");
        assert!(config.open("localhost", &[]).unwrap_err().to_string().contains("ca.pem: not valid PEM"));
    }
}
