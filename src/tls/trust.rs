//! Trusted certificates: those of authorities, and those that are trusted themselves.
//!
//! The verifier of rustls ignores the validity of authorities and what their certificates may be used for, and accepts no
//! certificate of an authority as that of a peer. So only authorities that are valid at the time are passed to it, and
//! certificates that are trusted themselves are compared here.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use rustls::client::verify_server_cert_signed_by_trust_anchor;
use rustls::crypto::WebPkiSupportedAlgorithms;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, TrustAnchor, UnixTime};
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{ParsedCertificate, WebPkiClientVerifier};
use rustls::{CertificateError, Error, RootCertStore};

use super::certificate::{TlsError, pem_error, provider, shown_date, unix_seconds};
use super::failure::{Reason, Role};
use super::x509;

/// Lifetime of an authority below which a warning is due.
const WARNING_DAYS: i64 = 30;

/// Trusted certificates.
pub(super) struct Trust {
    /// The peers whose certificates are verified.
    role: Role,
    algorithms: WebPkiSupportedAlgorithms,
    certificates: Vec<Trusted>,
    /// The authorities that were valid at the last verification.
    current: Mutex<Arc<Current>>,
}

/// A trusted certificate.
struct Trusted {
    der: CertificateDer<'static>,
    fields: x509::Fields,
    usage: x509::Usage,
    anchor: TrustAnchor<'static>,
}

/// The authorities that are valid in a period.
struct Current {
    /// The first and the last second of the period since 1970.
    period: (i64, i64),
    chains: Chains,
}

/// Verifies chains of certificates up to one of an authority.
enum Chains {
    Servers(RootCertStore),
    /// `None` if there is no authority.
    Clients(Option<Arc<dyn ClientCertVerifier>>),
}

impl fmt::Debug for Trust {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Trust").field("role", &self.role).finish_non_exhaustive()
    }
}

impl PartialEq for Trust {
    fn eq(&self, other: &Self) -> bool {
        let all = |trust: &'_ Trust| trust.certificates.iter().map(|trusted| trusted.der.clone()).collect::<Vec<_>>();
        self.role == other.role && all(self) == all(other)
    }
}

impl Trusted {
    /// Returns `None` if the certificate is damaged.
    fn read(der: CertificateDer<'static>) -> Option<Self> {
        let mut roots = RootCertStore::empty();
        roots.add(der.clone()).ok()?;
        let (fields, usage) = (x509::read(&der)?, x509::usage(&der)?);
        Some(Trusted { der, fields, usage, anchor: roots.roots.pop()? })
    }

    fn name(&self) -> String {
        let name = x509::subject(&self.der).and_then(x509::format_name).filter(|name| !name.is_empty());
        name.unwrap_or_else(|| "without a name".into())
    }

    fn is_valid(&self, now: i64) -> bool {
        (self.fields.not_before..=self.fields.not_after).contains(&now)
    }

    /// Returns why an authority cannot be used.
    fn reason(&self, now: i64) -> Option<String> {
        let x509::Fields { not_before, not_after, .. } = self.fields;
        let name = || format!("the certificate of the authority {}", self.name());
        if now < not_before {
            Some(format!("{} is not valid before {}", name(), shown_date(not_before)))
        } else if now > not_after {
            Some(format!("{} has expired on {}", name(), shown_date(not_after)))
        } else {
            None
        }
    }

    /// Verifies the certificate itself, for a peer of this role.
    fn verify(&self, role: Role, now: UnixTime) -> Result<(), Error> {
        let seconds =
            |time: i64| UnixTime::since_unix_epoch(std::time::Duration::from_secs(time.max(0).unsigned_abs()));
        let x509::Fields { not_before, not_after, .. } = self.fields;
        let at = as_seconds(now);
        if at < not_before {
            return Err(CertificateError::NotValidYetContext { time: now, not_before: seconds(not_before) }.into());
        }
        if at > not_after {
            return Err(CertificateError::ExpiredContext { time: now, not_after: seconds(not_after) }.into());
        }
        let purpose = match role {
            Role::Server => x509::FOR_SERVERS,
            Role::Client => x509::FOR_CLIENTS,
        };
        if self.usage.allows(purpose) { Ok(()) } else { Err(CertificateError::InvalidPurpose.into()) }
    }
}

impl Trust {
    /// Reads trusted certificates from PEM.
    ///
    /// # Errors
    /// Returns an error if there is none, or one cannot be used to verify any peer.
    pub(super) fn from_pem(role: Role, pem: &[u8]) -> Result<Self, TlsError> {
        let mut certificates = Vec::new();
        for der in CertificateDer::pem_slice_iter(pem) {
            let der = der.map_err(|error| pem_error(&error))?;
            let trusted = Trusted::read(der).ok_or_else(|| TlsError::new("contains a damaged certificate"))?;
            if role == Role::Client && !trusted.usage.is_authority && !trusted.usage.is_self_issued {
                return Err(TlsError::new(format!(
                    "the certificate of {} is not one of an authority (CA:TRUE), so it cannot have issued certificates \
                     of clients; use that of the authority",
                    trusted.name()
                )));
            }
            certificates.push(trusted);
        }
        if certificates.is_empty() {
            return Err(TlsError::new("no certificate found; PEM is expected"));
        }
        Ok(Self::new(role, certificates))
    }

    /// Trusts these certificates, except damaged ones.
    ///
    /// # Errors
    /// Returns an error if none is left.
    #[cfg(feature = "system-roots")]
    pub(super) fn from_system(certificates: Vec<CertificateDer<'static>>) -> Result<Self, TlsError> {
        let certificates: Vec<_> = certificates.into_iter().filter_map(Trusted::read).collect();
        if certificates.is_empty() {
            return Err(TlsError::new("this system has no certificates of trusted authorities"));
        }
        Ok(Self::new(Role::Server, certificates))
    }

    fn new(role: Role, certificates: Vec<Trusted>) -> Self {
        let current = Arc::new(Current::new(role, &certificates, unix_seconds(SystemTime::now())));
        let algorithms = provider().signature_verification_algorithms;
        Trust { role, algorithms, certificates, current: Mutex::new(current) }
    }

    fn authorities(&self) -> impl Iterator<Item = &Trusted> {
        self.certificates.iter().filter(|trusted| trusted.usage.is_authority)
    }

    /// Returns the certificates, as trust anchors.
    pub(super) fn anchors(&self) -> RootCertStore {
        RootCertStore { roots: self.certificates.iter().map(|trusted| trusted.anchor.clone()).collect() }
    }

    /// Returns warnings about authorities that are not valid, or will not be for long.
    pub(super) fn warnings(&self, now: SystemTime) -> impl Iterator<Item = String> {
        let now = unix_seconds(now);
        self.authorities().filter_map(move |trusted| match trusted.reason(now) {
            Some(reason) => Some(format!("{reason}; it is not used")),
            None if !trusted.is_valid(now.saturating_add(WARNING_DAYS * 86_400)) => {
                let end = shown_date(trusted.fields.not_after);
                Some(format!("the certificate of the authority {} expires on {end}", trusted.name()))
            }
            None => None,
        })
    }

    /// Returns whether all certificates are valid. A peer that was accepted before would then be accepted again, as long as
    /// its own certificate is valid.
    pub(super) fn are_all_valid(&self, now: SystemTime) -> bool {
        let now = unix_seconds(now);
        self.certificates.iter().all(|trusted| trusted.is_valid(now))
    }

    /// Verifies the certificate of a peer, except for its name.
    ///
    /// # Errors
    /// Returns an error if it is not valid, or neither trusted itself nor issued by an authority that is valid.
    pub(super) fn verify(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<(), Error> {
        let same = self.certificates.iter().find(|trusted| trusted.der == *end_entity);
        if let Some(trusted) = same.filter(|trusted| self.role == Role::Server || trusted.usage.is_self_issued) {
            return trusted.verify(self.role, now);
        }
        let verified = self.at(as_seconds(now)).chains.verify((end_entity, intermediates), now, self.algorithms);
        match verified {
            Err(Error::InvalidCertificate(CertificateError::UnknownIssuer)) => {
                Err(self.explain(end_entity, intermediates, now))
            }
            _ => verified,
        }
    }

    /// Returns the authorities that are valid at a time.
    fn at(&self, now: i64) -> Arc<Current> {
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        if !(current.period.0..=current.period.1).contains(&now) {
            *current = Arc::new(Current::new(self.role, &self.certificates, now));
        }
        Arc::clone(&current)
    }

    /// Explains why no valid authority has issued a certificate: another one may have.
    #[cold]
    fn explain(&self, end_entity: &CertificateDer<'_>, intermediates: &[CertificateDer<'_>], now: UnixTime) -> Error {
        for trusted in self.authorities() {
            let Some(reason) = trusted.reason(as_seconds(now)) else { continue };
            let chains = Chains::new(self.role, vec![trusted.anchor.clone()]);
            let verified = chains.verify((end_entity, intermediates), now, self.algorithms);
            if verified.is_ok() {
                return Reason::error(reason);
            }
        }
        CertificateError::UnknownIssuer.into()
    }
}

impl Current {
    fn new(role: Role, certificates: &[Trusted], now: i64) -> Self {
        let (mut roots, mut period) = (Vec::new(), (i64::MIN, i64::MAX));
        for trusted in certificates.iter().filter(|trusted| trusted.usage.is_authority) {
            let x509::Fields { not_before, not_after, .. } = trusted.fields;
            if now < not_before {
                period.1 = period.1.min(not_before - 1);
            } else if now > not_after {
                period.0 = period.0.max(not_after.saturating_add(1));
            } else {
                roots.push(trusted.anchor.clone());
                period = (period.0.max(not_before), period.1.min(not_after));
            }
        }
        Current { period, chains: Chains::new(role, roots) }
    }
}

impl Chains {
    fn new(role: Role, roots: Vec<TrustAnchor<'static>>) -> Self {
        let roots = RootCertStore { roots };
        match role {
            Role::Server => Chains::Servers(roots),
            // Fails only without authorities.
            Role::Client => {
                Chains::Clients(WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider()).build().ok())
            }
        }
    }

    fn verify(
        &self,
        (end_entity, intermediates): (&CertificateDer<'_>, &[CertificateDer<'_>]),
        now: UnixTime,
        algorithms: WebPkiSupportedAlgorithms,
    ) -> Result<(), Error> {
        match self {
            Chains::Servers(roots) => {
                let end_entity = ParsedCertificate::try_from(end_entity)?;
                verify_server_cert_signed_by_trust_anchor(&end_entity, roots, intermediates, now, algorithms.all)
            }
            Chains::Clients(Some(verifier)) => verifier.verify_client_cert(end_entity, intermediates, now).map(drop),
            Chains::Clients(None) => Err(CertificateError::UnknownIssuer.into()),
        }
    }
}

fn as_seconds(time: UnixTime) -> i64 {
    i64::try_from(time.as_secs()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rcgen::{CertificateParams, CertifiedIssuer, KeyPair};
    use std::time::Duration;

    /// The seconds from 1970 to a year.
    fn year(year: u64) -> u64 {
        // Exact in 2030 and 2040.
        (year - 1970) * 31_557_600 / 86_400 * 86_400
    }

    fn at(seconds: u64) -> UnixTime {
        UnixTime::since_unix_epoch(Duration::from_secs(seconds))
    }

    /// Creates an authority that is valid in the given years.
    fn authority(name: &str, years: (i32, i32)) -> CertifiedIssuer<'static, KeyPair> {
        let mut params = CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        (params.not_before, params.not_after) =
            (rcgen::date_time_ymd(years.0, 1, 1), rcgen::date_time_ymd(years.1, 1, 1));
        CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
    }

    fn leaf(issuer: &CertifiedIssuer<'static, KeyPair>) -> CertificateDer<'static> {
        let params = CertificateParams::new(["a.example".to_string()]).unwrap();
        params.signed_by(&KeyPair::generate().unwrap(), issuer).unwrap().der().clone()
    }

    fn trust(role: Role, certificates: &[&CertificateDer<'_>]) -> Trust {
        let read = |der: &&CertificateDer<'_>| Trusted::read((*der).clone().into_owned()).unwrap();
        Trust::new(role, certificates.iter().map(read).collect())
    }

    fn outcome(trust: &Trust, certificate: &CertificateDer<'_>, seconds: u64) -> Result<(), String> {
        let explain = |error: Error| super::super::failure::explain(&error, trust.role);
        trust.verify(certificate, &[], at(seconds)).map_err(explain)
    }

    #[test]
    fn an_authority_is_used_only_while_it_is_valid() {
        let (old, new) = (authority("old", (2020, 2030)), authority("new", (2030, 2040)));
        for role in [Role::Server, Role::Client] {
            let trust = trust(role, &[old.der(), new.der()]);
            let (by_old, by_new) = (leaf(&old), leaf(&new));
            let expired = Err("the certificate of the authority CN=old has expired on 2030-01-01".into());
            let early = Err("the certificate of the authority CN=new is not valid before 2030-01-01".into());
            // Forward and back.
            for (seconds, expected_old, expected_new) in [
                (year(2030) - 86_400, Ok(()), early.clone()),
                (year(2030) + 86_400, expired.clone(), Ok(())),
                (year(2030) - 86_400, Ok(()), early),
            ] {
                assert_eq!(outcome(&trust, &by_old, seconds), expected_old, "{seconds}");
                assert_eq!(outcome(&trust, &by_new, seconds), expected_new, "{seconds}");
            }
            let never = outcome(&trust, &by_new, year(2040) + 86_400).unwrap_err();
            assert_eq!(never, "the certificate of the authority CN=new has expired on 2040-01-01");
            let other = outcome(&trust, &leaf(&authority("old", (2020, 2030))), year(2030) + 86_400).unwrap_err();
            assert!(!other.contains("expired"), "{other}");
        }
    }

    #[test]
    fn warnings_name_authorities_that_are_not_valid_or_soon_not() {
        let trust = trust(Role::Client, &[authority("old", (2020, 2030)).der(), authority("new", (2030, 2040)).der()]);
        let warnings =
            |seconds| -> Vec<String> { trust.warnings(std::time::UNIX_EPOCH + Duration::from_secs(seconds)).collect() };
        let [old, new] = ["old", "new"].map(|name| format!("the certificate of the authority CN={name}"));
        let early = format!("{new} is not valid before 2030-01-01; it is not used");
        assert_eq!(warnings(year(2030) - 40 * 86_400), std::slice::from_ref(&early));
        assert_eq!(warnings(year(2030) - 20 * 86_400), [format!("{old} expires on 2030-01-01"), early]);
        assert_eq!(warnings(year(2030) + 86_400), [format!("{old} has expired on 2030-01-01; it is not used")]);
    }

    #[test]
    fn a_trusted_certificate_is_accepted_itself_while_it_is_valid() {
        let (issuer, other) = (authority("ours", (2020, 2030)), authority("theirs", (2020, 2030)));
        let now = year(2030) - 86_400;
        let by_other = leaf(&other);
        let servers = trust(Role::Server, &[issuer.der(), &by_other]);
        assert_eq!(outcome(&servers, issuer.der(), now), Ok(()), "one of an authority");
        assert_eq!(outcome(&servers, &by_other, now), Ok(()), "one of an authority that is not trusted");
        assert!(outcome(&servers, &leaf(&other), now).unwrap_err().contains("not signed by a trusted authority"));
        let expired = outcome(&servers, issuer.der(), year(2030) + 86_400).unwrap_err();
        assert_eq!(expired, "the certificate has expired on 2030-01-01");
        let clients = trust(Role::Client, &[issuer.der()]);
        assert_eq!(outcome(&clients, issuer.der(), now), Ok(()));
        assert!(outcome(&clients, other.der(), now).unwrap_err().contains("CA:TRUE"));
    }

    #[test]
    fn a_certificate_that_is_no_authority_verifies_no_other() {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(["a.example".to_string()]).unwrap();
        params.is_ca = rcgen::IsCa::ExplicitNoCa;
        let pinned = CertifiedIssuer::self_signed(params, key).unwrap();
        for role in [Role::Server, Role::Client] {
            let trust = trust(role, &[pinned.der()]);
            assert_eq!(outcome(&trust, pinned.der(), year(2030)), Ok(()));
            assert!(outcome(&trust, &leaf(&pinned), year(2030)).is_err());
        }
    }

    #[test]
    fn a_certificate_that_cannot_verify_clients_is_refused() {
        use base64::Engine;
        let text = base64::engine::general_purpose::STANDARD.encode(leaf(&authority("ours", (2020, 2030))));
        let pem = format!("-----BEGIN CERTIFICATE-----\n{text}\n-----END CERTIFICATE-----\n");
        let error = Trust::from_pem(Role::Client, pem.as_bytes()).unwrap_err().to_string();
        assert!(error.ends_with("cannot have issued certificates of clients; use that of the authority"), "{error}");
        assert!(Trust::from_pem(Role::Server, pem.as_bytes()).is_ok());
    }
}
