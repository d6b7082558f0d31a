//! A local certificate authority, whose certificates are accepted only where its own certificate was added to the trusted
//! ones: for development and private networks.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rcgen::{BasicConstraints, CertificateParams, DistinguishedName, DnType, IsCa, Issuer, KeyPair};
use rcgen::{ExtendedKeyUsagePurpose, KeyUsagePurpose};
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::ServerCertVerifier;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer, ServerName, UnixTime};
use rustls::{CertificateError, RootCertStore};

use super::certificate::{Certificate, Expiry, TlsError, expiry, provider, set_validity, validity_from};
use super::x509;

/// Validity of the authority: ten years.
const AUTHORITY_DAYS: i64 = 3652;

/// Validity of a certificate. Apple's systems accept at most 825 days from an authority that the user has added, other
/// systems do not limit it.
const CERTIFICATE_DAYS: i64 = 820;

/// Maximum length of a common name in bytes (X.520; the limit there is in characters).
const COMMON_NAME_BYTES_MAX: usize = 64;

/// A local certificate authority with its private key.
pub(crate) struct Authority {
    certificate: CertificateDer<'static>,
    key: KeyPair,
}

/// A certificate signed by an [`Authority`], and its private key, in PEM.
pub(crate) struct Issued {
    pub(crate) certificate: String,
    pub(crate) key: String,
    pub(crate) expiry: Option<Expiry>,
}

impl Authority {
    /// Creates an authority with a new P-256 key, which can sign certificates of servers, but of no other authority.
    pub(crate) fn create(name: &str) -> Result<Self, TlsError> {
        let failed = |error: rcgen::Error| TlsError::new(format!("cannot create a certificate authority: {error}"));
        let key = KeyPair::generate().map_err(failed)?;
        let mut params = authority_params(name);
        set_validity(&mut params, AUTHORITY_DAYS);
        let certificate = params.self_signed(&key).map_err(failed)?.der().clone();
        Ok(Authority { certificate, key })
    }

    /// Reads an authority that [`Authority::create`] has created.
    pub(crate) fn from_pem(certificate: &[u8], key: &[u8]) -> Result<Self, TlsError> {
        // Checks that they belong together.
        let pair = Certificate::from_pem(certificate, key)?;
        let key = PrivatePkcs8KeyDer::from_pem_slice(key).ok().and_then(|der| KeyPair::try_from(&der).ok());
        let key = key.ok_or_else(|| TlsError::new("the private key is not one of serverd"))?;
        Ok(Authority { certificate: pair.der().to_vec().into(), key })
    }

    pub(crate) fn certificate_pem(&self) -> String {
        pem("CERTIFICATE", &self.certificate)
    }

    pub(crate) fn key_pem(&self) -> String {
        pem("PRIVATE KEY", self.key.serialized_der())
    }

    /// Creates a certificate with a new P-256 key for DNS names, which may be wildcards, and IP addresses. It does not
    /// outlive the authority.
    ///
    /// # Errors
    /// Returns an error if a name cannot be part of a certificate, or the authority has expired or is damaged.
    pub(crate) fn issue(&self, names: &[String]) -> Result<Issued, TlsError> {
        let failed = |error: rcgen::Error| TlsError::new(format!("cannot create a certificate for {names:?}: {error}"));
        let authority = expiry(&self.certificate, SystemTime::now()).filter(|expiry| expiry.days > 0);
        let days_left = authority.ok_or_else(|| TlsError::new("the authority has expired"))?.days;
        let mut params = CertificateParams::new(names).map_err(failed)?;
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, "serverd local certificate");
        params.use_authority_key_identifier_extension = true;
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        set_validity(&mut params, CERTIFICATE_DAYS.min(days_left));
        let key = KeyPair::generate().map_err(failed)?;
        let name = x509::common_name(&self.certificate).ok_or_else(|| TlsError::new("the authority is damaged"))?;
        let authority_params = authority_params(&name);
        let issuer = Issuer::from_params(&authority_params, &self.key);
        let certificate = params.signed_by(&key, &issuer).map_err(failed)?;
        if !self.has_issued(certificate.der()) {
            return Err(TlsError::new("the authority cannot sign certificates; it was not created by serverd"));
        }
        let expiry = expiry(certificate.der(), SystemTime::now());
        let (certificate, key) = (pem("CERTIFICATE", certificate.der()), pem("PRIVATE KEY", key.serialized_der()));
        Ok(Issued { certificate, key, expiry })
    }

    /// Returns whether the first certificate of a PEM file was signed by this authority, even if it has expired.
    pub(crate) fn has_issued_pem(&self, pem: &[u8]) -> bool {
        CertificateDer::pem_slice_iter(pem).next().is_some_and(|first| first.is_ok_and(|first| self.has_issued(&first)))
    }

    fn has_issued(&self, certificate: &CertificateDer<'_>) -> bool {
        let mut roots = RootCertStore::empty();
        let (Ok(()), Some(start), Ok(any_name)) =
            (roots.add(self.certificate.clone()), validity_from(certificate), ServerName::try_from("localhost"))
        else {
            return false;
        };
        let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider()).build();
        let time = UnixTime::since_unix_epoch(start + Duration::from_secs(1));
        let outcome = verifier.map(|verifier| verifier.verify_server_cert(certificate, &[], &any_name, &[], time));
        // The name is compared after the signature.
        matches!(
            outcome,
            Ok(Ok(_)
                | Err(rustls::Error::InvalidCertificate(
                    CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. }
                )))
        )
    }
}

fn authority_params(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    let end = (0..=COMMON_NAME_BYTES_MAX.min(name.len())).rev().find(|&end| name.is_char_boundary(end));
    params.distinguished_name.push(DnType::CommonName, &name[..end.unwrap_or(0)]);
    // No intermediate authorities.
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}

/// Encodes DER as PEM (RFC 7468).
fn pem(label: &str, der: &[u8]) -> String {
    let mut text = format!("-----BEGIN {label}-----\n");
    // 48 bytes are a line of 64 characters.
    for line in der.chunks(48) {
        STANDARD.encode_string(line, &mut text);
        text.push('\n');
    }
    text + &format!("-----END {label}-----\n")
}

/// The files of the local authority in its directory.
pub(crate) const AUTHORITY_CERTIFICATE: &str = "ca.pem";
pub(crate) const AUTHORITY_KEY: &str = "ca-key.pem";

/// Returns the directory of the local authority, in the data directory of the user. `None` if the system does not define
/// one.
pub(crate) fn authority_directory() -> Option<PathBuf> {
    let home = || std::env::home_dir().filter(|home| home.is_absolute());
    let variable = |name| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let data = if cfg!(windows) {
        variable("LOCALAPPDATA")
    } else if cfg!(target_vendor = "apple") {
        home().map(|home| home.join("Library/Application Support"))
    } else {
        variable("XDG_DATA_HOME").or_else(|| Some(home()?.join(".local/share")))
    };
    Some(data?.join("serverd").join("ca"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_authority_is_read_again_and_recognizes_its_certificates() {
        let created = Authority::create("serverd local CA (a@b)").unwrap();
        let (certificate, key) = (created.certificate_pem(), created.key_pem());
        let authority = Authority::from_pem(certificate.as_bytes(), key.as_bytes()).unwrap();
        let names = ["localhost", "*.example.test", "192.0.2.1", "2001:db8::1"].map(String::from);
        let issued = authority.issue(&names).unwrap();
        // It began yesterday, and this day is not over.
        let days = issued.expiry.unwrap().days;
        assert!((817..=819).contains(&days), "{days}");
        let pair = Certificate::from_pem(issued.certificate.as_bytes(), issued.key.as_bytes()).unwrap();
        assert_eq!(pair.dns_names(), ["localhost", "*.example.test"]);
        assert!(created.has_issued_pem(issued.certificate.as_bytes()));
        assert!(issued.certificate.lines().all(|line| line.len() <= 64), "{}", issued.certificate);

        let other = Authority::create("serverd local CA (a@b)").unwrap();
        assert!(!other.has_issued_pem(issued.certificate.as_bytes()), "the same name, but another key");
        let self_signed = pem("CERTIFICATE", Certificate::self_signed(["localhost"]).unwrap().der());
        assert!(!authority.has_issued_pem(self_signed.as_bytes()));
        assert!(!authority.has_issued_pem(certificate.as_bytes()), "its own certificate");
        assert!(!authority.has_issued_pem(b"text"));
        assert!(Authority::from_pem(certificate.as_bytes(), other.key_pem().as_bytes()).is_err());
    }

    #[test]
    fn names_of_authorities_are_cut_to_the_length_that_is_allowed() {
        let authority = Authority::create(&"\u{e9}".repeat(50)).unwrap();
        assert_eq!(x509::common_name(&authority.certificate), Some("\u{e9}".repeat(32)));
        assert!(authority.issue(&["localhost".to_string()]).is_ok());
    }
}
