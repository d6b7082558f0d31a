//! The verifiers of certificates and of the signatures in handshakes that rustls calls.

use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::verify_server_name;
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{CertificateError, DigitallySignedStruct, DistinguishedName, Error, PeerMisbehaved, SignatureScheme};

use super::certificate::provider;
use super::failure::{Reason, Role};
use super::trust::Trust;
use super::x509;

/// Minimum size of an RSA key that ring verifies signatures of.
const RSA_BITS_MIN: usize = 2048;

/// A message of a handshake that the peer has signed.
#[derive(Clone, Copy)]
struct Signed<'a> {
    message: &'a [u8],
    certificate: &'a CertificateDer<'a>,
    signature: &'a DigitallySignedStruct,
    is_tls13: bool,
}

impl Signed<'_> {
    /// Verifies the signature with the key of the certificate.
    fn verify(self, algorithms: &WebPkiSupportedAlgorithms, peer: Role) -> Result<HandshakeSignatureValid, Error> {
        let Signed { message, certificate, signature, is_tls13 } = self;
        let verify = if is_tls13 { verify_tls13_signature } else { verify_tls12_signature };
        verify(message, certificate, signature, algorithms).map_err(|error| self.explain(error, peer))
    }

    /// Verifies the signature whatever the version of the certificate; rustls reads only those of version 3.
    fn verify_any(self, algorithms: &WebPkiSupportedAlgorithms, peer: Role) -> Result<HandshakeSignatureValid, Error> {
        if !x509::is_version_1(self.certificate) {
            return self.verify(algorithms, peer);
        }
        let scheme = self.signature.scheme;
        let is_allowed = !self.is_tls13 || !is_pkcs1(scheme);
        let known = algorithms.mapping.iter().find(|(known, _)| *known == scheme && is_allowed);
        let (_, candidates) = known.ok_or(PeerMisbehaved::SignedHandshakeWithUnadvertisedSigScheme)?;
        let key = x509::public_key(self.certificate).ok_or(CertificateError::BadEncoding)?;
        let mut candidates =
            candidates.iter().filter(|candidate| candidate.public_key_alg_id().as_ref() == key.algorithm);
        if candidates.any(|it| it.verify_signature(key.key, self.message, self.signature.signature()).is_ok()) {
            return Ok(HandshakeSignatureValid::assertion());
        }
        Err(self.explain(CertificateError::BadSignature.into(), peer))
    }

    /// Returns the error for a signature that cannot be verified.
    #[cold]
    fn explain(self, error: Error, peer: Role) -> Error {
        let bits = x509::public_key(self.certificate).and_then(|key| key.rsa_bits());
        if bits.is_some_and(|bits| bits < RSA_BITS_MIN) {
            Reason::error(format!("{peer}'s RSA key has fewer than 2,048 bits, which is not supported"))
        } else {
            error
        }
    }
}

/// Returns whether a signature scheme is one that TLS 1.3 has no longer (RFC 8446 section 4.2.3).
fn is_pkcs1(scheme: SignatureScheme) -> bool {
    matches!(
        scheme,
        SignatureScheme::RSA_PKCS1_SHA256 | SignatureScheme::RSA_PKCS1_SHA384 | SignatureScheme::RSA_PKCS1_SHA512
    )
}

/// Implements the part of both traits of rustls that is about signatures.
macro_rules! verify_signatures {
    ($method:ident, $peer:expr) => {
        fn verify_tls12_signature(
            &self,
            message: &[u8],
            certificate: &CertificateDer<'_>,
            signature: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            Signed { message, certificate, signature, is_tls13: false }.$method(&self.algorithms, $peer)
        }

        fn verify_tls13_signature(
            &self,
            message: &[u8],
            certificate: &CertificateDer<'_>,
            signature: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            Signed { message, certificate, signature, is_tls13: true }.$method(&self.algorithms, $peer)
        }

        fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
            self.algorithms.supported_schemes()
        }
    };
}

/// Accepts servers with a trusted certificate.
#[derive(Debug)]
pub(super) struct TrustedServers {
    trust: Trust,
    algorithms: WebPkiSupportedAlgorithms,
}

impl TrustedServers {
    pub(super) fn new(trust: Trust) -> Self {
        TrustedServers { trust, algorithms: provider().signature_verification_algorithms }
    }
}

impl ServerCertVerifier for TrustedServers {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        _: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.trust.verify(end_entity, intermediates, now)?;
        verify_server_name(&ParsedCertificate::try_from(end_entity)?, server_name)?;
        Ok(ServerCertVerified::assertion())
    }

    verify_signatures!(verify, Role::Server);
}

/// Accepts every certificate, but only with a valid signature by its key.
#[derive(Debug)]
pub(super) struct AnyServer {
    algorithms: WebPkiSupportedAlgorithms,
}

impl AnyServer {
    pub(super) fn new(provider: &CryptoProvider) -> Self {
        AnyServer { algorithms: provider.signature_verification_algorithms }
    }
}

impl ServerCertVerifier for AnyServer {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    verify_signatures!(verify_any, Role::Server);
}

/// Accepts clients with a trusted certificate, and also those without one unless it is mandatory.
#[derive(Debug)]
pub(super) struct TrustedClients {
    trust: Arc<Trust>,
    is_mandatory: bool,
    /// The subjects of the authorities, from which a client chooses its certificate.
    subjects: Vec<DistinguishedName>,
    algorithms: WebPkiSupportedAlgorithms,
}

impl TrustedClients {
    pub(super) fn new(trust: Arc<Trust>, is_mandatory: bool) -> Self {
        let (subjects, algorithms) = (trust.anchors().subjects(), provider().signature_verification_algorithms);
        TrustedClients { trust, is_mandatory, subjects, algorithms }
    }
}

impl ClientCertVerifier for TrustedClients {
    fn client_auth_mandatory(&self) -> bool {
        self.is_mandatory
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &self.subjects
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        self.trust.verify(end_entity, intermediates, now).map(|()| ClientCertVerified::assertion())
    }

    verify_signatures!(verify, Role::Client);
}
