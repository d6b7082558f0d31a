//! Explains errors of rustls, whose own texts name its types, in sentences for messages and logs.

use std::fmt;
use std::sync::Arc;

use rustls::{AlertDescription, CertificateError, Error, InvalidMessage, OtherError, PeerIncompatible};

use super::certificate::shown_date;

/// One of the two peers of a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    Server,
    Client,
}

impl fmt::Display for Role {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Role::Server => "the server",
            Role::Client => "the client",
        })
    }
}

/// A reason to refuse a certificate for which rustls has no error, as a sentence.
#[derive(Debug)]
pub(super) struct Reason(String);

impl Reason {
    pub(super) fn error(sentence: String) -> Error {
        CertificateError::Other(OtherError(Arc::new(Reason(sentence)))).into()
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

impl std::error::Error for Reason {}

/// Explains why a session with this peer has failed.
pub(super) fn explain(error: &Error, peer: Role) -> String {
    match error {
        Error::InvalidCertificate(reason) => explain_certificate(reason, peer),
        Error::AlertReceived(alert) => explain_alert(*alert, peer),
        Error::PeerIncompatible(reason) => explain_incompatible(reason, peer),
        Error::InvalidMessage(InvalidMessage::InvalidContentType) => match peer {
            Role::Server => "the server does not speak TLS on this port".into(),
            Role::Client => "the client does not speak TLS".into(),
        },
        Error::InvalidMessage(reason) => format!("{peer} has sent an invalid message ({})", words(reason)),
        Error::PeerMisbehaved(reason) => format!("{peer} has violated the protocol ({})", words(reason)),
        Error::InappropriateMessage { .. } | Error::InappropriateHandshakeMessage { .. } => {
            format!("{peer} has sent an unexpected message")
        }
        Error::NoCertificatesPresented => format!("{peer} has no certificate, but needs one"),
        Error::NoApplicationProtocol => no_protocol(peer),
        Error::DecryptError => format!("a message of {peer} cannot be decrypted"),
        Error::PeerSentOversizedRecord => format!("{peer} has sent a record that is too large"),
        Error::General(sentence) => sentence.clone(),
        other => other.to_string(),
    }
}

fn no_protocol(peer: Role) -> String {
    format!("{peer} supports none of the application protocols of this side (ALPN)")
}

/// Explains why the certificate of a peer is refused.
fn explain_certificate(reason: &CertificateError, peer: Role) -> String {
    let certificate = match peer {
        Role::Server => "the certificate",
        Role::Client => "the certificate of the client",
    };
    match reason {
        CertificateError::UnknownIssuer => format!(
            "{certificate} is not signed by a trusted authority, or {peer} does not send its intermediate certificates"
        ),
        CertificateError::Expired => format!("{certificate} has expired"),
        CertificateError::ExpiredContext { not_after, .. } => {
            let end = i64::try_from(not_after.as_secs()).unwrap_or(i64::MAX);
            format!("{certificate} has expired on {}", shown_date(end))
        }
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
            format!("{certificate} is not valid yet, or the clock of this system is slow")
        }
        CertificateError::NotValidForNameContext { expected, presented } => {
            let names = if presented.is_empty() { ", as it has no subject alternative names" } else { "" };
            format!("{certificate} is not valid for {}{names}", expected.to_str())
        }
        CertificateError::InvalidPurpose | CertificateError::InvalidPurposeContext { .. } => match peer {
            Role::Server => format!("{certificate} is not intended for servers"),
            Role::Client => format!("{certificate} is not intended for clients"),
        },
        CertificateError::BadSignature => {
            format!("a signature of {peer} or of its certificates is not valid, or made with too short an RSA key")
        }
        CertificateError::UnsupportedSignatureAlgorithmContext { .. }
        | CertificateError::UnsupportedSignatureAlgorithmForPublicKeyContext { .. } => {
            format!("{certificate} has a key or a signature of an unsupported kind")
        }
        CertificateError::BadEncoding => format!("{certificate} is damaged"),
        CertificateError::UnhandledCriticalExtension => format!("{certificate} has an unknown critical extension"),
        CertificateError::Other(OtherError(reason)) => match reason.downcast_ref::<Reason>() {
            Some(Reason(sentence)) => sentence.clone(),
            None => explain_other(&reason.to_string(), certificate),
        },
        other => format!("{certificate} is not valid ({})", words(other)),
    }
}

/// The name of the error for a peer with a certificate of an authority, which rustls does not know.
const AUTHORITY_AS_PEER: &str = "CaUsedAsEndEntity";

/// Returns whether a certificate is refused because it is one of an authority, as a self-signed one by `openssl req -x509`.
#[cfg(feature = "cli")]
pub(super) fn is_authority(reason: &CertificateError) -> bool {
    matches!(reason, CertificateError::Other(OtherError(reason)) if reason.to_string() == AUTHORITY_AS_PEER)
}

/// Explains an error of the verifier that rustls does not know, by its name.
fn explain_other(name: &str, certificate: &str) -> String {
    match name {
        AUTHORITY_AS_PEER => {
            format!("{certificate} is one of an authority (CA:TRUE), which is accepted only if it is trusted itself")
        }
        "UnsupportedCertVersion" => format!("{certificate} or that of its authority is not of X.509 version 3"),
        name => format!("{certificate} is not valid ({})", words(name)),
    }
}

/// Explains an alert of a peer.
fn explain_alert(alert: AlertDescription, peer: Role) -> String {
    match (alert, peer) {
        (AlertDescription::ProtocolVersion, Role::Server) => "the server does not support TLS 1.2 or 1.3".into(),
        (AlertDescription::ProtocolVersion, Role::Client) => "the client supports no version of TLS in common".into(),
        (AlertDescription::CertificateRequired, _) => "the server requires a client certificate".into(),
        // The latter if the server trusts another authority of the same name.
        (AlertDescription::UnknownCA | AlertDescription::DecryptError, Role::Server) => {
            "the server does not trust the authority of the client certificate".into()
        }
        (AlertDescription::UnknownCA, Role::Client) => "the client does not trust the server's certificate".into(),
        (AlertDescription::CertificateExpired, Role::Server) => {
            "the server refused the client certificate, which has expired".into()
        }
        (AlertDescription::CertificateExpired, Role::Client) => {
            "the client refused the server's certificate, which has expired".into()
        }
        (AlertDescription::BadCertificate | AlertDescription::UnsupportedCertificate, Role::Server) => {
            "the server refused the client certificate; it may not be intended for clients".into()
        }
        (AlertDescription::CertificateUnknown | AlertDescription::CertificateRevoked, Role::Server) => {
            "the server has rejected the client's certificate".into()
        }
        (
            AlertDescription::BadCertificate
            | AlertDescription::UnsupportedCertificate
            | AlertDescription::CertificateUnknown
            | AlertDescription::CertificateRevoked,
            Role::Client,
        ) => "the client has rejected the server's certificate".into(),
        (AlertDescription::HandshakeFailure, Role::Server) => {
            "the server refused the TLS handshake; it has no cipher suites in common, or requires a client certificate"
                .into()
        }
        (AlertDescription::AccessDenied, _) => format!("{peer} has denied access"),
        (AlertDescription::UnrecognisedName, _) => "the server has no certificate for this server name".into(),
        (AlertDescription::NoApplicationProtocol, _) => no_protocol(peer),
        (AlertDescription::InternalError, _) => format!("{peer} has failed (internal error)"),
        _ => format!("{peer} refused the TLS connection ({})", words(alert)),
    }
}

/// Explains what the two peers do not have in common.
fn explain_incompatible(reason: &PeerIncompatible, peer: Role) -> String {
    match reason {
        // An extension that TLS 1.2 has added.
        PeerIncompatible::SignatureAlgorithmsExtensionRequired => "the client offers only TLS 1.1 or older".into(),
        PeerIncompatible::Tls12NotOffered
        | PeerIncompatible::Tls12NotOfferedOrEnabled
        | PeerIncompatible::SupportedVersionsExtensionRequired => {
            "the client offers no version of TLS that is accepted".into()
        }
        PeerIncompatible::ServerDoesNotSupportTls12Or13 | PeerIncompatible::ServerTlsVersionIsDisabledByOurConfig => {
            "the server does not support TLS 1.2 or 1.3".into()
        }
        PeerIncompatible::NoCipherSuitesInCommon => format!("{peer} has no cipher suite in common"),
        PeerIncompatible::NoKxGroupsInCommon | PeerIncompatible::NamedGroupsExtensionRequired => {
            format!("{peer} has no key exchange group in common")
        }
        PeerIncompatible::NoSignatureSchemesInCommon
        | PeerIncompatible::NoCertificateRequestSignatureSchemesInCommon => {
            format!("{peer} has no signature algorithm in common")
        }
        other => format!("{peer} is not compatible ({})", words(other)),
    }
}

/// Formats the name of a variant as words, as in `no cipher suites in common`.
fn words(variant: impl fmt::Debug) -> String {
    let text = format!("{variant:?}");
    let name = text.trim_matches('"').split(['(', '{', ' ']).next().unwrap_or_default();
    let mut words = String::new();
    let mut after_lower = false;
    for char in name.chars() {
        if char.is_ascii_uppercase() && after_lower {
            words.push(' ');
        }
        after_lower = !char.is_ascii_uppercase();
        words.push(char.to_ascii_lowercase());
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustls::{InconsistentKeys, PeerMisbehaved};

    #[test]
    fn errors_are_explained_without_names_of_types() {
        use Role::{Client, Server};
        for (error, peer, expected) in [
            (
                Error::AlertReceived(AlertDescription::CertificateUnknown),
                Server,
                "the server has rejected the client's certificate",
            ),
            (
                Error::AlertReceived(AlertDescription::CertificateUnknown),
                Client,
                "the client has rejected the server's certificate",
            ),
            (
                Error::AlertReceived(AlertDescription::ProtocolVersion),
                Server,
                "the server does not support TLS 1.2 or 1.3",
            ),
            (
                Error::AlertReceived(AlertDescription::IllegalParameter),
                Client,
                "the client refused the TLS connection (illegal parameter)",
            ),
            (
                PeerIncompatible::SignatureAlgorithmsExtensionRequired.into(),
                Client,
                "the client offers only TLS 1.1 or older",
            ),
            (
                PeerIncompatible::NullCompressionRequired.into(),
                Client,
                "the client is not compatible (null compression required)",
            ),
            (
                PeerMisbehaved::TooManyEmptyFragments.into(),
                Client,
                "the client has violated the protocol (too many empty fragments)",
            ),
            (
                Error::InvalidMessage(InvalidMessage::MissingData("ClientHello")),
                Client,
                "the client has sent an invalid message (missing data)",
            ),
            (CertificateError::Revoked.into(), Server, "the certificate is not valid (revoked)"),
            (Reason::error("a sentence".into()), Client, "a sentence"),
            (Error::InconsistentKeys(InconsistentKeys::Unknown), Server, "keys may not be consistent: Unknown"),
        ] {
            assert_eq!(explain(&error, peer), expected, "{error:?}");
        }
        for (name, expected) in [
            ("CaUsedAsEndEntity", "the certificate is one of an authority (CA:TRUE)"),
            ("UnsupportedCertVersion", "the certificate or that of its authority is not of X.509 version 3"),
            ("PathLenConstraintViolated", "the certificate is not valid (path len constraint violated)"),
        ] {
            let explained = explain_other(name, "the certificate");
            assert!(explained.starts_with(expected), "{explained}");
        }
    }
}
