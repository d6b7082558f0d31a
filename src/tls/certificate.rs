//! Certificates with their private keys: read from PEM files, or self-signed in memory. An error in one, or in the
//! configuration of TLS, is a [`TlsError`].

use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::{self, PemObject, SectionKind};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::sign::CertifiedKey;
use sha2::{Digest, Sha256};

use super::{loaded_keys, x509};

/// Maximum size of a PEM file. A chain of certificates takes a few KiB.
const PEM_BYTES_MAX: u64 = 1024 * 1024;

/// Validity of a self-signed certificate: the longest that browsers accept from a certificate authority.
const SELF_SIGNED_DAYS: i64 = 397;

const SECONDS_PER_DAY: i64 = 86_400;

/// A certificate chain with the private key of its first certificate.
///
/// # Examples
/// ```
/// let certificate = serverd::tls::Certificate::self_signed(["localhost", "127.0.0.1"])?;
/// assert_eq!(certificate.dns_names(), ["localhost"]);
/// assert_eq!(certificate.fingerprint().len(), 95);
/// assert!(certificate.validity_warning(std::time::SystemTime::now()).is_none());
/// # Ok::<(), serverd::tls::TlsError>(())
/// ```
#[derive(Clone)]
pub struct Certificate {
    pub(super) key: Arc<CertifiedKey>,
    fields: x509::Fields,
}

impl fmt::Debug for Certificate {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Certificate").field("dns_names", &self.fields.dns_names).finish_non_exhaustive()
    }
}

impl Certificate {
    /// Reads a certificate chain and its private key from PEM. The server's own certificate comes first, followed by the
    /// intermediate certificates. The key can be PKCS#8, SEC1 (`EC PRIVATE KEY`) or PKCS#1 (`RSA PRIVATE KEY`); P-256,
    /// P-384, Ed25519 and RSA keys are supported. Both arguments can be the same file with certificates and key.
    ///
    /// # Errors
    /// Returns an error if either part is missing or not supported, or if they do not belong together.
    pub fn from_pem(chain: &[u8], key: &[u8]) -> Result<Self, TlsError> {
        let chain = parse_chain(chain)?;
        let key = load_key(key)?;
        Self::new(chain, key)
    }

    /// Reads a certificate chain and its private key from PEM files; see [`Certificate::from_pem`].
    ///
    /// # Errors
    /// Returns the errors of [`Certificate::from_pem`], and an error if a file cannot be read or is larger than 1 MiB.
    pub fn from_pem_files(chain: &Path, key: &Path) -> Result<Self, TlsError> {
        let named = |path: &Path| {
            let path = path.display().to_string();
            move |error: TlsError| TlsError::new(format!("{path}: {error}"))
        };
        let parsed_chain = parse_chain(&read(chain)?).map_err(named(chain))?;
        let parsed_key = load_key(&read(key)?).map_err(named(key))?;
        Self::new(parsed_chain, parsed_key)
            .map_err(|error| TlsError::new(format!("{}, {}: {error}", chain.display(), key.display())))
    }

    /// Creates a self-signed certificate for DNS names and IP addresses, with a new P-256 key. It is valid from a day ago,
    /// for clients whose clock is slow, and for 397 days.
    ///
    /// # Errors
    /// Returns an error if a name is not ASCII, or the system has no random numbers.
    pub fn self_signed(names: impl IntoIterator<Item = impl Into<String>>) -> Result<Self, TlsError> {
        let names: Vec<String> = names.into_iter().map(Into::into).collect();
        let failed = |error: rcgen::Error| {
            TlsError::new(format!("cannot create a self-signed certificate for {names:?}: {error}"))
        };
        let mut params = rcgen::CertificateParams::new(names.clone()).map_err(failed)?;
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(rcgen::DnType::CommonName, "serverd self-signed certificate");
        params.use_authority_key_identifier_extension = false;
        params.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ServerAuth];
        params.key_usages = vec![rcgen::KeyUsagePurpose::DigitalSignature];
        set_validity(&mut params, SELF_SIGNED_DAYS);
        let key = rcgen::KeyPair::generate().map_err(failed)?;
        let certificate = params.self_signed(&key).map_err(failed)?;
        Self::new(vec![certificate.der().clone()], PrivatePkcs8KeyDer::from(key.serialize_der()).into())
    }

    fn new(chain: Vec<CertificateDer<'static>>, key: PrivateKeyDer<'static>) -> Result<Self, TlsError> {
        let provider = provider();
        let key = provider.key_provider.load_private_key(key).map_err(|_| {
            TlsError::new(
                "the private key is not supported or damaged; use an ECDSA P-256, P-384 or Ed25519 key, or an RSA key of \
                 at least 2,048 bits",
            )
        })?;
        let unreadable = || TlsError::new("the certificate is damaged or not an X.509 certificate");
        let leaf = chain.first().ok_or_else(unreadable)?;
        if x509::is_version_1(leaf) {
            return Err(TlsError::new("the certificate is of X.509 version 1; version 3 is needed"));
        }
        let fields = x509::read(leaf).ok_or_else(unreadable)?;
        let certified = CertifiedKey::new(chain, key);
        match certified.keys_match() {
            Ok(()) | Err(rustls::Error::InconsistentKeys(rustls::InconsistentKeys::Unknown)) => {}
            Err(rustls::Error::InconsistentKeys(_)) => return Err(mismatch(&certified)),
            Err(_) => return Err(unreadable()),
        }
        Ok(Certificate { key: Arc::new(certified), fields })
    }

    /// Returns the server's own certificate in DER, for a client that trusts only this certificate.
    pub fn der(&self) -> &[u8] {
        self.key.cert.first().map_or(&[], |leaf| leaf)
    }

    /// Returns the DNS names of the certificate, in lower case; a name can be a wildcard such as `*.example.com`.
    pub fn dns_names(&self) -> &[String] {
        &self.fields.dns_names
    }

    /// Returns the time from which the certificate is valid.
    pub fn not_before(&self) -> SystemTime {
        system_time(self.fields.not_before)
    }

    /// Returns the time until which the certificate is valid.
    pub fn not_after(&self) -> SystemTime {
        system_time(self.fields.not_after)
    }

    /// Returns the SHA-256 fingerprint of the certificate as browsers and openssl show it, such as `0A:1B:...`.
    pub fn fingerprint(&self) -> String {
        fingerprint(self.der())
    }

    /// Returns a warning if the certificate is not valid at `now`, or if less than a third of its lifetime is left.
    pub fn validity_warning(&self, now: SystemTime) -> Option<String> {
        let x509::Fields { not_before, not_after, .. } = self.fields;
        let now = unix_seconds(now);
        let (left, lifetime) = (not_after.saturating_sub(now), not_after.saturating_sub(not_before));
        let end = shown_date(not_after);
        if now < not_before {
            Some(format!("the certificate is not valid before {}", shown_date(not_before)))
        } else if left < 0 {
            Some(format!("the certificate has expired on {end}"))
        } else if left < lifetime / 3 {
            let days = left / SECONDS_PER_DAY;
            let plural = if days == 1 { "" } else { "s" };
            Some(format!("the certificate expires on {end}, in {days} day{plural}"))
        } else {
            None
        }
    }
}

/// Returns the SHA-256 fingerprint of a certificate in DER.
pub(super) fn fingerprint(der: &[u8]) -> String {
    let hex: Vec<String> = Sha256::digest(der).iter().map(|byte| format!("{byte:02X}")).collect();
    hex.join(":")
}

/// Makes a certificate valid for a number of days, the first of which is yesterday, for clients whose clock is slow.
pub(super) fn set_validity(params: &mut rcgen::CertificateParams, days: i64) {
    let today = unix_seconds(SystemTime::now()).div_euclid(SECONDS_PER_DAY);
    let ((year, month, day), end) = (date(today - 1), date(today - 1 + days));
    params.not_before = rcgen::date_time_ymd(year, month, day);
    params.not_after = rcgen::date_time_ymd(end.0, end.1, end.2);
}

/// Returns the start of the validity of a certificate in DER, as the time since 1970; `None` if it is damaged.
#[cfg(feature = "cli")]
pub(super) fn validity_from(der: &[u8]) -> Option<Duration> {
    u64::try_from(x509::read(der)?.not_before).ok().map(Duration::from_secs)
}

/// The cryptography of all keys and sessions.
pub(super) fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

/// The expiry of a certificate.
#[cfg(feature = "cli")]
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Expiry {
    /// The date, such as `2026-11-28`.
    pub(crate) date: String,
    /// The number of whole days left; negative if the certificate has expired.
    pub(crate) days: i64,
    /// The date from which the certificate is valid, if it is not valid yet.
    pub(crate) valid_from: Option<String>,
}

/// Returns the expiry of a certificate in DER, or `None` if it is damaged.
#[cfg(feature = "cli")]
pub(super) fn expiry(der: &[u8], now: SystemTime) -> Option<Expiry> {
    let x509::Fields { not_before, not_after, .. } = x509::read(der)?;
    let now = unix_seconds(now);
    let days = not_after.saturating_sub(now).div_euclid(SECONDS_PER_DAY);
    let valid_from = (now < not_before).then(|| shown_date(not_before));
    Some(Expiry { date: shown_date(not_after), days, valid_from })
}

/// Explains a private key that does not belong to the first certificate.
fn mismatch(certified: &CertifiedKey) -> TlsError {
    let is_match = |other: &CertificateDer<'static>| {
        CertifiedKey::new(vec![other.clone()], Arc::clone(&certified.key)).keys_match().is_ok()
    };
    TlsError::new(if certified.cert.iter().skip(1).any(is_match) {
        "the private key matches a certificate that is not the first; put the server's own certificate first"
    } else {
        "the private key does not match the certificate"
    })
}

fn parse_chain(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    let chain = chain.map_err(|error| pem_error(&error))?;
    if chain.is_empty() {
        return Err(TlsError::new("no certificate found; PEM is expected (-----BEGIN CERTIFICATE-----)"));
    }
    Ok(chain)
}

/// Parses a private key, and records its file as one that must not be served.
fn load_key(pem: &[u8]) -> Result<PrivateKeyDer<'static>, TlsError> {
    let key = parse_key(pem)?;
    loaded_keys::record(pem);
    Ok(key)
}

/// Explains a PEM file that cannot be read.
pub(super) fn pem_error(error: &pem::Error) -> TlsError {
    TlsError::new(match error {
        pem::Error::MissingSectionEnd { end_marker } => {
            let marker = String::from_utf8_lossy(end_marker);
            format!("not valid PEM: the section {} has no end; the file may be incomplete", section_name(&marker))
        }
        pem::Error::IllegalSectionStart { line } => {
            format!("not valid PEM: the line {:?} is damaged", String::from_utf8_lossy(line).trim())
        }
        pem::Error::Base64Decode(_) => "not valid PEM: a section is not valid Base64".into(),
        error => format!("not valid PEM: {error}"),
    })
}

/// Returns the name in a line that ends a section, as far as it is one.
fn section_name(marker: &str) -> &str {
    let marker = marker.trim().trim_matches('-');
    marker.strip_prefix("END ").unwrap_or(marker)
}

fn parse_key(pem: &[u8]) -> Result<PrivateKeyDer<'static>, TlsError> {
    // Depending on the format, in the first line or in a header.
    if memchr::memmem::find(pem, b"ENCRYPTED").is_some() {
        return Err(TlsError::new("the private key is encrypted; decrypt it with openssl pkey -in FILE -out NEW-FILE"));
    }
    let mut keys = Vec::new();
    for section in <(SectionKind, Vec<u8>)>::pem_slice_iter(pem) {
        let (kind, der) = section.map_err(|error| pem_error(&error))?;
        keys.extend(PrivateKeyDer::from_pem(kind, der));
    }
    let key = keys.pop();
    let key = key.ok_or("no private key found; PEM is expected (-----BEGIN PRIVATE KEY-----)");
    key.and_then(|key| if keys.is_empty() { Ok(key) } else { Err("several private keys found; keep one") })
        .map_err(TlsError::new)
}

/// Returns a hash of the content of a file, or `None` if it cannot be read, or read again (see [`is_rereadable`]). Equal
/// times and lengths do not mean that a file is unchanged: copying can preserve both.
pub(crate) fn file_hash(path: &Path) -> Option<[u8; 32]> {
    if !is_rereadable(path) {
        return None;
    }
    Some(Sha256::digest(read(path).ok()?).into())
}

/// Returns whether reading a file neither waits nor changes what is read the next time. A pipe, such as the `/dev/fd/63` of
/// a shell, can be read once, and a named pipe without a writer is waited for.
pub(crate) fn is_rereadable(path: &Path) -> bool {
    std::fs::metadata(path).is_ok_and(|metadata| metadata.is_file())
}

/// Reads a PEM file, of at most [`PEM_BYTES_MAX`].
pub(crate) fn read(path: &Path) -> Result<Vec<u8>, TlsError> {
    use std::io::Read;
    let failed = |error: &dyn fmt::Display| TlsError::new(format!("cannot read {}: {error}", path.display()));
    let file = std::fs::File::open(path).map_err(|error| failed(&error))?;
    let mut bytes = Vec::new();
    file.take(PEM_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(|error| failed(&error))?;
    if bytes.len() as u64 > PEM_BYTES_MAX { Err(failed(&"larger than 1 MiB")) } else { Ok(bytes) }
}

pub(super) fn unix_seconds(time: SystemTime) -> i64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |elapsed| i64::try_from(elapsed.as_secs()).unwrap_or(i64::MAX))
}

fn system_time(unix_seconds: i64) -> SystemTime {
    let seconds = Duration::from_secs(unix_seconds.unsigned_abs());
    let time = if unix_seconds < 0 { UNIX_EPOCH.checked_sub(seconds) } else { UNIX_EPOCH.checked_add(seconds) };
    time.unwrap_or(UNIX_EPOCH)
}

/// Formats a date as in `2026-11-28`.
pub(super) fn shown_date(unix_seconds: i64) -> String {
    let (year, month, day) = x509::date_from_days(unix_seconds.div_euclid(SECONDS_PER_DAY));
    format!("{year:04}-{month:02}-{day:02}")
}

/// Returns the date of a day since 1970, in the types of rcgen.
fn date(days: i64) -> (i32, u8, u8) {
    let (year, month, day) = x509::date_from_days(days);
    // Holds for all days before the year 2,147,483,648.
    let year = i32::try_from(year).unwrap_or(i32::MAX);
    (year, u8::try_from(month).unwrap_or(1), u8::try_from(day).unwrap_or(1))
}

/// An error in a certificate, a private key or the configuration of TLS, as a sentence for the user.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsError(String);

impl TlsError {
    pub(crate) fn new(message: impl Into<String>) -> Self {
        TlsError(message.into())
    }

    /// Returns an error of the kind `InvalidData`, for a caller with other errors of I/O.
    #[cfg(feature = "cli")]
    pub(crate) fn into_io(self) -> std::io::Error {
        std::io::Error::new(std::io::ErrorKind::InvalidData, self)
    }
}

impl fmt::Display for TlsError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

impl std::error::Error for TlsError {}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: Duration = Duration::from_secs(86_400);

    #[cfg(feature = "cli")]
    #[test]
    fn a_certificate_that_is_not_valid_yet_is_recognised() {
        let mut params = rcgen::CertificateParams::new(["a.example".to_string()]).unwrap();
        (params.not_before, params.not_after) = (rcgen::date_time_ymd(2030, 1, 1), rcgen::date_time_ymd(2030, 1, 11));
        let der = params.self_signed(&rcgen::KeyPair::generate().unwrap()).unwrap().der().to_vec();
        let first = UNIX_EPOCH + Duration::from_secs(1_893_456_000);
        let valid_from = |now| expiry(&der, now).unwrap().valid_from;
        assert_eq!(valid_from(first - DAY), Some("2030-01-01".into()));
        assert_eq!((valid_from(first), expiry(&der, first).unwrap().days), (None, 10));
    }

    /// Returns a certificate and its key in PEM.
    fn pem(names: &[&str]) -> (String, String) {
        let key = rcgen::KeyPair::generate().unwrap();
        let names: Vec<String> = names.iter().map(ToString::to_string).collect();
        let certificate = rcgen::CertificateParams::new(names).unwrap().self_signed(&key).unwrap();
        (encode("CERTIFICATE", certificate.der()), encode("PRIVATE KEY", key.serialized_der()))
    }

    fn encode(label: &str, der: &[u8]) -> String {
        const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
        let mut text = format!("-----BEGIN {label}-----\n");
        for chunk in der.chunks(3) {
            let bits = chunk.iter().fold(0_u32, |bits, byte| bits << 8 | u32::from(*byte)) << (8 * (3 - chunk.len()));
            for digit in 0..4 {
                let digit = if digit <= chunk.len() { DIGITS[(bits >> (18 - 6 * digit)) as usize & 63] } else { b'=' };
                text.push(char::from(digit));
            }
        }
        text + &format!("\n-----END {label}-----\n")
    }

    fn error(chain: &str, key: &str) -> String {
        Certificate::from_pem(chain.as_bytes(), key.as_bytes()).unwrap_err().to_string()
    }

    #[test]
    fn a_certificate_and_its_key_are_read_from_one_or_two_files() {
        let (chain, key) = pem(&["Example.org", "*.example.org", "192.0.2.1"]);
        let certificate = Certificate::from_pem(chain.as_bytes(), key.as_bytes()).unwrap();
        assert_eq!(certificate.dns_names(), ["example.org", "*.example.org"]);
        let both = format!("Some text\n{key}{chain}");
        let same = Certificate::from_pem(both.as_bytes(), both.as_bytes()).unwrap();
        assert_eq!(same.fingerprint(), certificate.fingerprint());
    }

    /// Written by openssl.
    #[test]
    fn keys_in_all_formats_are_read() {
        for (chain, key) in [("a.pem", "a.key"), ("a.pem", "a-pkcs8.key"), ("rsa.pem", "rsa.key")] {
            let [chain, key] = [chain, key].map(|name| Path::new("tests/tls").join(name));
            let certificate = Certificate::from_pem_files(&chain, &key).unwrap();
            assert!(certificate.dns_names()[0].ends_with(".example"), "{certificate:?}");
        }
        for (chain, key, reason) in [
            ("v1.pem", "v1.key", "the certificate is of X.509 version 1; version 3 is needed"),
            ("rsa1024.pem", "rsa1024.key", "or an RSA key of at least 2,048 bits"),
        ] {
            let [chain, key] = [chain, key].map(|name| Path::new("tests/tls").join(name));
            let error = Certificate::from_pem_files(&chain, &key).unwrap_err().to_string();
            assert!(error.ends_with(reason), "{error}");
        }
        let [chain, key] = ["a.pem", "b.key"].map(|name| Path::new("tests/tls").join(name));
        let error = Certificate::from_pem_files(&chain, &key).unwrap_err().to_string();
        assert!(
            error.contains("a.pem") && error.ends_with("the private key does not match the certificate"),
            "{error}"
        );
    }

    #[test]
    fn a_mistake_in_either_file_is_explained() {
        let ((chain, key), (other, other_key)) = (pem(&["a"]), pem(&["b"]));
        assert_eq!(error(&chain, &other_key), "the private key does not match the certificate");
        assert!(error(&(other + &chain), &key).contains("put the server's own certificate first"));
        assert!(error(&key, &key).starts_with("no certificate found"));
        assert!(error(&chain, &chain).starts_with("no private key found"));
        assert!(error(&chain, &(key.clone() + &other_key)).starts_with("several private keys"));
        assert!(error("", "").starts_with("no certificate found"));
        assert!(error("-----BEGIN CERTIFICATE-----\n", &key).starts_with("not valid PEM"));
        assert!(error(&encode("CERTIFICATE", b"text"), &key).contains("damaged"));
        assert!(error(&chain, &encode("PRIVATE KEY", b"text")).contains("not supported or damaged"));
        assert!(error(&chain, &encode("ENCRYPTED PRIVATE KEY", b"text")).contains("encrypted"));
        let missing = Certificate::from_pem_files(Path::new("/absent/chain.pem"), Path::new("/absent/key.pem"));
        assert!(missing.unwrap_err().to_string().starts_with("cannot read /absent/chain.pem: "));
    }

    #[test]
    fn validity_is_checked_at_both_ends_and_in_the_last_third() {
        let certificate = Certificate::self_signed(["localhost"]).unwrap();
        let (start, end) = (certificate.not_before(), certificate.not_after());
        assert_eq!(end.duration_since(start).unwrap(), DAY * 397);
        let warning = |now| certificate.validity_warning(now).unwrap_or_default();
        assert_eq!(warning(start), "");
        assert!(warning(start - DAY).contains("is not valid before "));
        assert_eq!(warning(end - DAY * 133), "");
        assert!(warning(end - DAY * 132).ends_with("in 132 days"));
        assert!(warning(end - DAY).ends_with("in 1 day"));
        assert!(warning(end + DAY).contains("has expired on "));
        assert_eq!(shown_date(0), "1970-01-01");
    }

    #[cfg(feature = "cli")]
    #[test]
    fn the_days_until_a_certificate_expires_are_counted() {
        let certificate = Certificate::self_signed(["localhost"]).unwrap();
        let days = |now| expiry(certificate.der(), now).unwrap().days;
        let end = certificate.not_after();
        assert_eq!([days(end - DAY), days(end), days(end + DAY / 2)], [1, 0, -1]);
        assert_eq!(expiry(certificate.der(), end).unwrap().date, shown_date(unix_seconds(end)));
        assert_eq!(expiry(b"text", end), None);
    }

    #[test]
    fn a_self_signed_certificate_needs_names_in_ascii() {
        let error = Certificate::self_signed(["b\u{fc}cher.example"]).unwrap_err().to_string();
        assert!(error.starts_with("cannot create a self-signed certificate for "), "{error}");
    }
}
