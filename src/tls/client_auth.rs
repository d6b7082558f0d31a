//! Certificates of clients (mutual TLS): the authorities that may have issued them, and the identity that they prove.

use std::sync::Arc;
use std::time::SystemTime;

use rustls::server::NoClientAuth;
use rustls::server::danger::ClientCertVerifier;

use super::certificate::{TlsError, fingerprint, unix_seconds};
use super::failure::Role;
use super::trust::Trust;
use super::verifier::TrustedClients;
use super::x509;

/// Clients that a server with [`Tls::client_ca`](super::Tls::client_ca) accepts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
#[non_exhaustive]
pub enum ClientAuth {
    /// Only clients with a valid certificate.
    #[default]
    Required,
    /// Also clients without a certificate. One that is not valid is refused.
    Optional,
}

/// The certificate of a client, which it has proved to have the private key of.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ClientCertificate {
    /// The subject in the format of RFC 4514, such as `CN=Alice,O=Example`. Special characters are escaped, so that a value
    /// cannot be taken for several attributes. Empty if the certificate has no subject but only alternative names.
    pub subject: String,
    /// The SHA-256 fingerprint, such as `0A:1B:...`.
    pub fingerprint: String,
    /// The certificate in DER.
    pub der: Vec<u8>,
}

impl ClientCertificate {
    pub(super) fn new(der: &[u8]) -> Self {
        let subject = x509::subject(der).and_then(x509::format_name);
        ClientCertificate { subject: subject.unwrap_or_default(), fingerprint: fingerprint(der), der: der.to_vec() }
    }

    /// Returns whether the certificate has expired. Verified in the full handshake; a resumed session repeats only this.
    pub(super) fn has_expired(&self, now: SystemTime) -> bool {
        x509::read(&self.der).is_none_or(|fields| fields.not_after < unix_seconds(now))
    }
}

/// Reads certificates of authorities from PEM. Logs warnings about their validity.
pub(super) fn parse_authorities(pem: &[u8]) -> Result<Trust, TlsError> {
    let trust = Trust::from_pem(Role::Client, pem)?;
    trust.warnings(SystemTime::now()).for_each(|warning| log::warn!("TLS: {warning}"));
    Ok(trust)
}

/// Returns the verifier of certificates that these authorities have issued, or none if clients are not asked for one.
pub(super) fn verifier(authorities: Option<&Arc<Trust>>, auth: ClientAuth) -> Arc<dyn ClientCertVerifier> {
    match authorities {
        Some(trust) => Arc::new(TrustedClients::new(Arc::clone(trust), auth == ClientAuth::Required)),
        None => Arc::new(NoClientAuth),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::{Duration, UNIX_EPOCH};

    #[test]
    fn the_identity_of_a_client_is_read_from_its_certificate() {
        let mut params = rcgen::CertificateParams::new(["alice.example".to_string()]).unwrap();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(rcgen::DnType::OrganizationName, "Example, Inc.");
        params.distinguished_name.push(rcgen::DnType::CommonName, "Alice");
        params.not_after = rcgen::date_time_ymd(2030, 1, 2);
        let der = params.self_signed(&rcgen::KeyPair::generate().unwrap()).unwrap().der().to_vec();
        let client = ClientCertificate::new(&der);
        assert_eq!(client.subject, "CN=Alice,O=Example\\, Inc.");
        assert_eq!(client.fingerprint.len(), 95);
        let end = UNIX_EPOCH + Duration::from_secs(1_893_542_400);
        assert!(!client.has_expired(end));
        assert!(client.has_expired(end + Duration::from_secs(1)));
        let unreadable = ClientCertificate::new(&der[..50]);
        assert!(unreadable.subject.is_empty() && unreadable.has_expired(UNIX_EPOCH));
    }

    #[test]
    fn files_of_authorities_are_explained_if_they_are_not_usable() {
        let error = |pem: &str| parse_authorities(pem.as_bytes()).unwrap_err().to_string();
        assert_eq!(error("text"), "no certificate found; PEM is expected");
        assert_eq!(
            error("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"),
            "contains a damaged certificate"
        );
        let expected = "not valid PEM: the section CERTIFICATE has no end; the file may be incomplete";
        assert_eq!(error("-----BEGIN CERTIFICATE-----\nAAAA\n"), expected);
        let pem = std::fs::read("tests/tls/a.pem").unwrap();
        assert_eq!(parse_authorities(&[&pem[..], &pem].concat()).unwrap().anchors().len(), 2);
    }
}
