//! A TLS session of a server: ciphertext in, plaintext out, and the reverse. It does no I/O.
//!
//! The interface is that of rustls 0.24, in which the caller owns the buffers, over rustls 0.23, which copies.

use std::io::{self, BufRead, IoSlice, Read, Write};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rustls::pki_types::UnixTime;
use rustls::{HandshakeKind, ProtocolVersion, ServerConnection};

use super::certificate::TlsError;
use super::client_auth::ClientCertificate;
use super::config::{Resolver, SessionConfig, Tls, TlsVersion};
use super::failure::{self, Role};
use super::trust::Trust;

/// Maximum ciphertext of a handshake. The largest regular handshake has client certificates, of some KiB.
const HANDSHAKE_BYTES_MAX: usize = 64 * 1024;

/// Maximum plaintext encrypted in one call, so that a slow client does not cause a copy of a large response.
const ENCRYPT_BYTES_MAX: usize = 64 * 1024;

/// Length of the header of a record.
const HEADER_BYTES: usize = 5;

/// Maximum plaintext of a record (RFC 8446 section 5.1).
const RECORD_BYTES_MAX: usize = 16 * 1024;

/// Plaintext of a record that fits into one packet. At the beginning and after a pause, records are that small: a client
/// can decrypt a record only once all of its packets have arrived, of which TCP sends only a few per round trip at first.
const SMALL_RECORD_BYTES: usize = 1400 - 22;

/// Plaintext that is sent in small records at the beginning, and after a pause of [`PAUSE`].
const SMALL_RECORDS_TOTAL: usize = 64 * 1024;

/// Pause in sending after which the congestion window of TCP may be small again.
const PAUSE: Duration = Duration::from_secs(1);

/// Maximum slices of one record.
const SLICES_MAX: usize = 16;

/// The parameters of a TLS session.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct TlsInfo {
    /// The version of TLS.
    pub version: TlsVersion,
    /// The cipher suite, by its IANA name.
    pub cipher_suite: String,
    /// The server name that the client connects to (SNI), in lower case.
    pub server_name: Option<String>,
    /// The negotiated application protocol (ALPN), such as `http/1.1`.
    pub alpn_protocol: Option<String>,
    /// The verified certificate of the client; `None` if it was not asked for one or has none.
    pub client_certificate: Option<Arc<ClientCertificate>>,
}

/// The server's end of a TLS connection.
pub(crate) struct Session {
    connection: ServerConnection,
    /// Decrypted bytes that were not read yet.
    plaintext: usize,
    /// Ciphertext of the handshake so far.
    handshake_bytes: usize,
    records: Records,
    /// The peer has sent a `close_notify` alert: no more plaintext follows.
    ended: bool,
    /// The reason for which the session has failed.
    failure: Option<rustls::Error>,
    /// The certificate of the client, known once the handshake is complete.
    client_certificate: Option<Arc<ClientCertificate>>,
    /// The certificates of the server, if it has several.
    certificates: Option<Arc<Resolver>>,
    /// The authorities of the certificates of clients.
    authorities: Option<Arc<Trust>>,
    /// Plaintext still to be sent in small records.
    small_records: usize,
    /// When more than a small record was last encrypted.
    encrypted_at: Option<Duration>,
}

impl Session {
    pub(crate) fn new(tls: &Tls) -> io::Result<Self> {
        let SessionConfig { config, certificates, authorities } = tls.current();
        let mut connection = ServerConnection::new(config).map_err(io::Error::other)?;
        connection.set_buffer_limit(None);
        Ok(Session {
            connection,
            plaintext: 0,
            handshake_bytes: 0,
            records: Records::default(),
            ended: false,
            failure: None,
            client_certificate: None,
            certificates,
            authorities,
            small_records: SMALL_RECORDS_TOTAL,
            encrypted_at: None,
        })
    }

    pub(crate) fn is_handshaking(&self) -> bool {
        self.connection.is_handshaking()
    }

    /// Returns whether the session has failed because of the certificate of the client.
    pub(crate) fn has_refused_certificate(&self) -> bool {
        matches!(self.failure, Some(rustls::Error::InvalidCertificate(_)))
    }

    /// Returns the negotiated parameters; `None` before the handshake is complete.
    pub(crate) fn info(&self) -> Option<TlsInfo> {
        if self.is_handshaking() {
            return None;
        }
        let version = match self.connection.protocol_version()? {
            ProtocolVersion::TLSv1_2 => TlsVersion::Tls12,
            _ => TlsVersion::Tls13,
        };
        let suite = self.connection.negotiated_cipher_suite()?.suite();
        Some(TlsInfo {
            version,
            cipher_suite: suite.as_str().unwrap_or_default().replacen("TLS13_", "TLS_", 1),
            server_name: self.connection.server_name().map(str::to_ascii_lowercase),
            alpn_protocol: self.connection.alpn_protocol().map(|name| String::from_utf8_lossy(name).into_owned()),
            client_certificate: self.client_certificate.clone(),
        })
    }

    pub(crate) fn client_certificate(&self) -> Option<&ClientCertificate> {
        self.client_certificate.as_deref()
    }

    /// Returns whether `host` has another certificate than the server name that the client has sent.
    pub(crate) fn is_misdirected(&self, host: &str) -> bool {
        match (&self.certificates, self.connection.server_name()) {
            (Some(certificates), Some(name)) => !name.eq_ignore_ascii_case(host) && !certificates.may_share(name, host),
            _ => false,
        }
    }

    /// Returns whether the peer has announced the end of its output.
    pub(crate) fn has_ended(&self) -> bool {
        self.ended
    }

    /// Returns whether [`Session::receive`] has more to return without more ciphertext.
    pub(crate) fn has_plaintext(&self) -> bool {
        self.plaintext > 0 || self.failure.is_some()
    }

    /// Decrypts from the front of `ciphertext`, which is advanced, into `plaintext`, and returns the number of bytes written.
    /// Stops when `plaintext` is full; the rest of `ciphertext` is to be passed again.
    ///
    /// # Errors
    /// Returns `InvalidData` if the peer violates the protocol. An alert for the peer is then ready to be sent.
    pub(crate) fn receive(&mut self, ciphertext: &mut &[u8], plaintext: &mut [u8]) -> io::Result<usize> {
        let mut written = self.take_plaintext(plaintext)?;
        while self.plaintext == 0 && self.failure.is_none() {
            if self.ended {
                *ciphertext = &[];
            }
            if ciphertext.is_empty() {
                return Ok(written);
            }
            self.decrypt_from(|buffer| ciphertext.read(buffer))?;
            written += self.take_plaintext(&mut plaintext[written..])?;
        }
        match &self.failure {
            Some(failure) if self.plaintext == 0 && written == 0 => {
                let reason = TlsError::new(failure::explain(failure, Role::Client));
                Err(io::Error::new(io::ErrorKind::InvalidData, reason))
            }
            _ => Ok(written),
        }
    }

    /// Decrypts what `read` writes to a buffer of some KiB, and returns the number of bytes that `read` returned.
    /// [`Session::take_plaintext`] then returns the plaintext, and [`Session::receive`] also a violation of the protocol.
    ///
    /// # Errors
    /// Returns the errors of `read`.
    #[inline]
    pub(crate) fn decrypt_from(&mut self, read: impl FnMut(&mut [u8]) -> io::Result<usize>) -> io::Result<usize> {
        let was_handshaking = self.connection.is_handshaking();
        let count = self.connection.read_tls(&mut Followed { read, records: &mut self.records })?;
        match self.connection.process_new_packets() {
            Ok(state) => {
                self.plaintext = state.plaintext_bytes_to_read();
                self.ended = state.peer_has_closed();
            }
            Err(error) => self.failure = Some(error),
        }
        if was_handshaking {
            self.follow_handshake(count);
        }
        Ok(count)
    }

    /// Moves decrypted bytes to `plaintext`, and returns their number, which is 0 also after a violation of the protocol.
    #[inline]
    pub(crate) fn take_plaintext(&mut self, plaintext: &mut [u8]) -> io::Result<usize> {
        let mut written = 0;
        while self.plaintext > 0 && written < plaintext.len() {
            // Takes fewer instructions than `Read::read`.
            let mut reader = self.connection.reader();
            let chunk = reader.fill_buf()?;
            let count = chunk.len().min(plaintext.len() - written);
            plaintext[written..written + count].copy_from_slice(&chunk[..count]);
            reader.consume(count);
            written += count;
            self.plaintext -= count;
        }
        Ok(written)
    }

    /// Continues after `count` more bytes of the handshake.
    #[inline(never)]
    fn follow_handshake(&mut self, count: usize) {
        self.handshake_bytes += count;
        if !self.connection.is_handshaking() {
            if self.failure.is_none() {
                self.identify_client();
            }
        } else if self.handshake_bytes > HANDSHAKE_BYTES_MAX {
            self.failure.get_or_insert(rustls::Error::General("the handshake is too large".into()));
        }
    }

    /// Reads the certificate of the client at the end of the handshake.
    fn identify_client(&mut self) {
        let Some((certificate, intermediates)) = self.connection.peer_certificates().and_then(<[_]>::split_first)
        else {
            return;
        };
        let client = ClientCertificate::new(certificate);
        if self.connection.handshake_kind() == Some(HandshakeKind::Resumed) {
            let now = SystemTime::now();
            if client.has_expired(now) {
                self.failure = Some(rustls::CertificateError::Expired.into());
            } else if let Some(authorities) = self.authorities.as_ref().filter(|trust| !trust.are_all_valid(now)) {
                self.failure = authorities.verify(certificate, intermediates, UnixTime::now()).err();
            }
        }
        self.client_certificate = Some(Arc::new(client));
    }

    /// Encrypts the beginning of the concatenation of `slices`. Returns the number of bytes encrypted, which is 0 only
    /// if there are none. `now` is the time of a monotonic clock.
    pub(crate) fn encrypt(&mut self, slices: &[IoSlice<'_>], now: Duration) -> io::Result<usize> {
        match slices {
            // One record, whatever its limit.
            [only] if (1..=SMALL_RECORD_BYTES).contains(&only.len()) => {
                let written = self.connection.writer().write(only)?;
                self.small_records = self.small_records.saturating_sub(written);
                if written == 0 { Err(io::ErrorKind::WriteZero.into()) } else { Ok(written) }
            }
            _ => self.encrypt_outlined(slices, now),
        }
    }

    /// The part of [`Session::encrypt`] for several records, or a record of several slices.
    #[inline(never)]
    fn encrypt_outlined(&mut self, slices: &[IoSlice<'_>], now: Duration) -> io::Result<usize> {
        let total: usize = slices.iter().map(|slice| slice.len()).sum();
        if total > SMALL_RECORD_BYTES {
            self.choose_record_size(now);
        }
        let (mut rest, mut encrypted) = (Slices { slices, start: 0 }, 0);
        while encrypted < total.min(ENCRYPT_BYTES_MAX) {
            let limit = if self.small_records > 0 { SMALL_RECORD_BYTES } else { RECORD_BYTES_MAX };
            let mut parts = [IoSlice::new(&[]); SLICES_MAX];
            let used = rest.take(limit, &mut parts);
            // rustls allocates a list of several parts.
            let written = match &parts[..used] {
                [only] => self.connection.writer().write(only)?,
                several => self.connection.writer().write_vectored(several)?,
            };
            self.small_records = self.small_records.saturating_sub(written);
            encrypted += written;
            // rustls accepts everything while its keys last.
            if written < parts[..used].iter().map(|part| part.len()).sum() {
                break;
            }
        }
        if encrypted == 0 && total > 0 { Err(io::ErrorKind::WriteZero.into()) } else { Ok(encrypted) }
    }

    /// Returns to small records after a pause.
    fn choose_record_size(&mut self, now: Duration) {
        if self.encrypted_at.is_some_and(|at| now.saturating_sub(at) >= PAUSE) {
            self.small_records = SMALL_RECORDS_TOTAL;
        }
        self.encrypted_at = Some(now);
    }

    /// Adds a `close_notify` alert to the ciphertext.
    pub(crate) fn end(&mut self) {
        self.connection.send_close_notify();
    }

    /// Returns whether ciphertext is to be sent.
    pub(crate) fn has_ciphertext(&self) -> bool {
        self.connection.wants_write()
    }

    /// Returns the number of bytes of ciphertext to be sent.
    pub(crate) fn ciphertext_bytes(&mut self) -> usize {
        if !self.has_ciphertext() {
            return 0;
        }
        self.connection.process_new_packets().map_or(0, |state| state.tls_bytes_to_write())
    }

    /// Returns approximately the memory of all buffers, in bytes.
    pub(crate) fn buffered_bytes(&mut self) -> usize {
        let received = if self.is_handshaking() { self.handshake_bytes } else { self.records.incomplete };
        received + self.plaintext + self.ciphertext_bytes()
    }

    /// Passes ciphertext to `sink` in one vectored write. Returns the number of bytes written.
    pub(crate) fn send(&mut self, sink: &mut dyn Write) -> io::Result<usize> {
        self.connection.write_tls(sink)
    }
}

/// Ciphertext on its way to rustls.
struct Followed<'a, F> {
    read: F,
    records: &'a mut Records,
}

impl<F: FnMut(&mut [u8]) -> io::Result<usize>> Read for Followed<'_, F> {
    #[inline]
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = (self.read)(buffer)?;
        self.records.follow(&buffer[..count]);
        Ok(count)
    }
}

/// Finds the records in ciphertext, to know how much of an incomplete one rustls keeps.
#[derive(Default)]
struct Records {
    /// The beginning of the current record.
    header: [u8; HEADER_BYTES],
    /// Number of bytes of the current record so far; 0 between two records.
    incomplete: usize,
}

impl Records {
    /// Continues with the next bytes, which usually are one complete record.
    #[inline]
    fn follow(&mut self, bytes: &[u8]) {
        let length = bytes.first_chunk().map(|&[_, _, _, high, low]| u16::from_be_bytes([high, low]));
        if self.incomplete > 0 || length.is_none_or(|length| HEADER_BYTES + usize::from(length) != bytes.len()) {
            self.follow_outlined(bytes);
        }
    }

    /// The part of [`Records::follow`] for all other input.
    #[inline(never)]
    fn follow_outlined(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let wanted = if self.incomplete < HEADER_BYTES { HEADER_BYTES } else { self.record_bytes() };
            let (next, rest) = bytes.split_at(bytes.len().min(wanted - self.incomplete));
            if let Some(header) = self.header.get_mut(self.incomplete..self.incomplete + next.len()) {
                header.copy_from_slice(next);
            }
            self.incomplete += next.len();
            bytes = rest;
            if self.incomplete >= HEADER_BYTES && self.incomplete == self.record_bytes() {
                self.incomplete = 0;
            }
        }
    }

    /// The length of the current record with its header, which is complete.
    fn record_bytes(&self) -> usize {
        HEADER_BYTES + usize::from(u16::from_be_bytes([self.header[3], self.header[4]]))
    }
}

/// The rest of a list of slices.
struct Slices<'a> {
    slices: &'a [IoSlice<'a>],
    /// Number of bytes already taken from the first slice.
    start: usize,
}

impl<'a> Slices<'a> {
    /// Takes up to `bytes_max` bytes, as parts of slices. Returns the number of parts.
    fn take(&mut self, mut bytes_max: usize, parts: &mut [IoSlice<'a>]) -> usize {
        let mut used = 0;
        while let Some((first, others)) = self.slices.split_first() {
            let rest = &first[self.start..];
            let count = rest.len().min(bytes_max);
            if count > 0 {
                if used == parts.len() {
                    break;
                }
                parts[used] = IoSlice::new(&rest[..count]);
                used += 1;
            }
            bytes_max -= count;
            self.start += count;
            if self.start < first.len() {
                break;
            }
            (self.slices, self.start) = (others, 0);
        }
        used
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn incomplete_records_are_found_however_the_input_is_split() {
        let record = |length: u16| [&[23, 3, 3][..], &length.to_be_bytes(), &vec![7; length.into()]].concat();
        let bytes = [record(300), record(0), record(1), record(20_000), record(65_535)].concat();
        let ends = [305, 310, 316, 316 + 20_005, bytes.len()];
        for size in [1, 2, 5, 7, 300, 4096, bytes.len()] {
            let (mut records, mut end) = (Records::default(), 0);
            for piece in bytes.chunks(size) {
                records.follow(piece);
                end += piece.len();
                let last = ends.iter().rev().find(|&&last| last <= end).unwrap_or(&0);
                assert_eq!(records.incomplete, end - last, "{end} bytes in pieces of {size}");
            }
        }
    }
}
