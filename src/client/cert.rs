//! `serverd cert`: certificates for development and private networks, signed by a local authority that is created once.
//!
//! The authority is in the data directory of the user. Its directory appears complete, under its final name, so that of
//! two processes that create it at once, one uses the authority of the other. Private keys are created with permissions
//! for their owner only.

mod pair;

use std::fmt::Write as _;
use std::fs;
use std::io::{self, Write};
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use self::pair::{DirectoryLock, Pair, cannot, create_file};
use crate::tls::{AUTHORITY_CERTIFICATE, AUTHORITY_KEY, Authority, authority_directory, machine_name};

/// Maximum number of names of a certificate.
const NAMES_MAX: usize = 100;

/// Maximum length of a DNS name, and of a label of one (RFC 1035 section 2.3.4).
const NAME_BYTES_MAX: usize = 253;
const LABEL_BYTES_MAX: usize = 63;

/// Options of `serverd cert`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cert {
    /// DNS names and IP addresses, as parsed by [`parse_name`]. If empty, only the path of the authority's certificate is
    /// printed.
    pub names: Vec<String>,
    /// The directory for the certificate and its private key.
    pub out: PathBuf,
    /// Overwrites existing files, even those that were not created by this command.
    pub force: bool,
}

/// Parses a name of a certificate: a DNS name, a wildcard such as `*.example.test`, or an IP address.
///
/// # Errors
/// Returns a message for the user if the name cannot be part of a certificate.
pub fn parse_name(text: &str) -> Result<String, String> {
    let bare = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(text);
    if let Ok(address) = bare.parse::<IpAddr>() {
        return Ok(address.to_string());
    }
    if !text.is_ascii() {
        return Err("must be ASCII; use the form that begins with xn--".into());
    }
    let name = text.strip_suffix('.').unwrap_or(text).to_ascii_lowercase();
    let labels = name.strip_prefix("*.").unwrap_or(&name);
    let is_letter = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
    let is_label = |label: &str| {
        (1..=LABEL_BYTES_MAX).contains(&label.len())
            && label.bytes().all(is_letter)
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    // Digits only would be a mistyped address.
    let is_number = |label: &str| label.bytes().all(|byte| byte.is_ascii_digit());
    let is_name = name.len() <= NAME_BYTES_MAX
        && labels.split('.').all(is_label)
        && !labels.rsplit('.').next().is_some_and(is_number);
    if is_name { Ok(name) } else { Err("must be a host name or an IP address, without a port, e.g. localhost".into()) }
}

impl Cert {
    /// Creates the certificate, and the authority if there is none, and writes an explanation to `out`.
    ///
    /// # Errors
    /// Returns a message for the user if a file cannot be read or written, or must not be overwritten.
    pub fn run(&self, out: &mut impl Write) -> Result<(), String> {
        let directory = authority_directory()
            .ok_or_else(|| format!("this system has no directory for data of this user; set {DATA_VARIABLE}"))?;
        check_directory(&directory)?;
        let mut text = String::new();
        if self.names.is_empty() {
            let path = directory.join(AUTHORITY_CERTIFICATE);
            if !path.exists() {
                return Err("there is no local certificate authority yet; serverd cert NAME creates it".into());
            }
            let _ = writeln!(text, "{}", path.display());
        } else {
            self.create(&directory, &mut text)?;
        }
        out.write_all(text.as_bytes()).and_then(|()| out.flush()).map_err(|error| format!("cannot write: {error}"))
    }

    fn create(&self, directory: &Path, text: &mut String) -> Result<(), String> {
        let mut names = self.names.clone();
        let mut seen = std::collections::HashSet::new();
        names.retain(|name| seen.insert(name.clone()));
        if names.len() > NAMES_MAX {
            return Err(format!("a certificate can have at most {NAMES_MAX} names"));
        }
        names.iter().filter(|name| is_wide_wildcard(name)).for_each(|name| {
            log::warn!("{name}: browsers reject a wildcard for a whole top-level domain; use *.example{}", &name[1..]);
        });
        let (authority, is_new) = open_or_create(directory)?;
        fs::create_dir_all(&self.out).map_err(|error| cannot("create", &self.out, &error))?;
        if is_within(&self.out, directory) {
            return Err(format!("{} belongs to the authority; specify another directory", self.out.display()));
        }
        let pair = Pair::new(&self.out, &names);
        let lock = DirectoryLock::acquire(&self.out)?;
        if !self.force {
            pair.check(&authority)?;
        }
        let issued = authority.issue(&names).map_err(|error| format!("{}: {error}", directory.display()))?;
        pair.write(&issued)?;
        drop(lock);
        let Pair { certificate, key } = pair;
        let expiry = issued.expiry.map(|expiry| expiry.date).unwrap_or_default();
        let _ = write!(
            text,
            "Certificate: {} (valid until {expiry})\nPrivate key: {}\nNames: {}\n{}\n{}",
            certificate.display(),
            key.display(),
            names.join(", "),
            start_command(&certificate, &key),
            how_to_trust(&directory.join(AUTHORITY_CERTIFICATE), is_new)
        );
        Ok(())
    }
}

/// Returns whether a name is a wildcard for a whole top-level domain, such as `*.com`.
fn is_wide_wildcard(name: &str) -> bool {
    name.strip_prefix("*.").is_some_and(|domain| !domain.contains('.'))
}

/// Returns an error if a file is in the place of the authority's directory, or of one above it.
fn check_directory(directory: &Path) -> Result<(), String> {
    let nearest = directory.ancestors().find(|path| fs::symlink_metadata(path).is_ok());
    let Some(file) = nearest.filter(|path| fs::metadata(path).is_ok_and(|metadata| !metadata.is_dir())) else {
        return Ok(());
    };
    let (file, shown) = (file.display(), directory.display());
    Err(format!("the local authority cannot be in {shown}: {file} is not a directory"))
}

const DATA_VARIABLE: &str = if cfg!(windows) { "LOCALAPPDATA" } else { "HOME" };

fn is_within(path: &Path, directory: &Path) -> bool {
    matches!((path.canonicalize(), directory.canonicalize()), (Ok(path), Ok(directory)) if path.starts_with(&directory))
}

/// Returns the local authority, and whether it was created.
fn open_or_create(directory: &Path) -> Result<(Authority, bool), String> {
    if let Some(authority) = open(directory)? {
        return Ok((authority, false));
    }
    let parent = directory.parent().unwrap_or(directory);
    create_private(parent, true).map_err(|error| cannot("create", parent, &error))?;
    let user = ["USER", "USERNAME", "LOGNAME"].into_iter().find_map(|name| std::env::var(name).ok());
    let (user, machine) = (user.unwrap_or_else(|| "user".into()), machine_name().unwrap_or_else(|| "localhost".into()));
    let authority = Authority::create(&format!("serverd local CA ({user}@{machine})"));
    let authority = authority.map_err(|error| error.to_string())?;
    let new = parent.join(format!(".ca-{}", std::process::id()));
    let outcome = publish(&authority, &new, directory);
    if let Err(error) = outcome {
        let _ = fs::remove_dir_all(&new);
        // Another process has created one.
        return open(directory)?.map(|authority| (authority, false)).ok_or(error);
    }
    Ok((authority, true))
}

/// Writes an authority to the directory `new`, and renames that to `directory`.
fn publish(authority: &Authority, new: &Path, directory: &Path) -> Result<(), String> {
    create_private(new, false).map_err(|error| cannot("create", new, &error))?;
    create_file(&new.join(AUTHORITY_KEY), authority.key_pem().as_bytes(), true)?;
    create_file(&new.join(AUTHORITY_CERTIFICATE), authority.certificate_pem().as_bytes(), false)?;
    fs::rename(new, directory).map_err(|error| cannot("create", directory, &error))
}

/// Reads the local authority; `None` if there is none.
fn open(directory: &Path) -> Result<Option<Authority>, String> {
    let paths = [AUTHORITY_CERTIFICATE, AUTHORITY_KEY].map(|name| directory.join(name));
    let is_missing = |error: &io::Error| error.kind() == io::ErrorKind::NotFound;
    match paths.each_ref().map(fs::read) {
        [Ok(certificate), Ok(key)] => {
            warn_if_readable(&paths[1]);
            let authority = Authority::from_pem(&certificate, &key);
            authority.map(Some).map_err(|error| format!("{}: {error}", directory.display()))
        }
        [Err(first), Err(second)] if is_missing(&first) && is_missing(&second) => Ok(None),
        outcomes => {
            let failed = paths.iter().zip(outcomes).find_map(|(path, outcome)| Some((path, outcome.err()?)));
            Err(failed.map_or_else(String::new, |(path, error)| {
                cannot("read", path, &error) + "; restore it, or remove its directory to begin with another authority"
            }))
        }
    }
}

/// Creates a directory that only its owner can use.
fn create_private(directory: &Path, recursive: bool) -> io::Result<()> {
    let mut builder = fs::DirBuilder::new();
    builder.recursive(recursive);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.create(directory)
}

#[cfg(unix)]
fn warn_if_readable(key: &Path) {
    use std::os::unix::fs::MetadataExt;
    if fs::metadata(key).is_ok_and(|metadata| metadata.mode() & 0o077 != 0) {
        log::warn!("{} can be read by other users; use chmod 600", key.display());
    }
}

/// Does nothing: Windows has access control lists instead.
#[cfg(not(unix))]
fn warn_if_readable(_: &Path) {}

fn start_command(certificate: &Path, key: &Path) -> String {
    format!("\nStart a server with it:\n  serverd files . --tls-cert {} --tls-key {}\n", quote(certificate), quote(key))
}

/// Returns the commands with which an authority is trusted.
fn how_to_trust(path: &Path, is_new: bool) -> String {
    let (quoted, shown) = (quote(path), path.display());
    let created = if is_new { ", which was created now" } else { "" };
    format!(
        "It is signed by the local authority{created}:
  {shown}
Clients accept it once they trust this authority. Copy the file to them, but never share {AUTHORITY_KEY} beside it: with
that, anyone can pretend to be any site. No trust store was changed. To trust it:

  Debian, Ubuntu  sudo cp {quoted} /usr/local/share/ca-certificates/serverd-local-ca.crt
                  sudo update-ca-certificates
  Fedora, RHEL    sudo cp {quoted} /etc/pki/ca-trust/source/anchors/serverd-local-ca.pem
                  sudo update-ca-trust
  macOS           sudo security add-trusted-cert -d -r trustRoot -k /Library/Keychains/System.keychain {quoted}
  Windows         certutil -addstore -user Root {quoted}
  Firefox         Settings, Certificates, View Certificates, Authorities, Import
  Chromium        certutil -d sql:$HOME/.pki/nssdb -A -t C,, -n serverd-local-ca -i {quoted}   (Linux, libnss3-tools)
  Java            keytool -importcert -cacerts -noprompt -alias serverd-local-ca -file {quoted}
  curl            curl --cacert {quoted} https://...
  serverd         serverd check https://... --ca {quoted}
"
    )
}

/// Quotes a path for the shell of this system, if necessary.
fn quote(path: &Path) -> String {
    let text = path.display().to_string();
    let is_safe = |letter: char| letter.is_alphanumeric() || "/\\:._-+@".contains(letter);
    if cfg!(windows) {
        return if text.chars().all(is_safe) { text } else { format!("\"{text}\"") };
    }
    let is_plain = text.chars().all(|letter| is_safe(letter) && letter != '\\');
    if is_plain { text } else { format!("'{}'", text.replace('\'', r"'\''")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_dns_names_wildcards_and_addresses() {
        for (text, name) in [
            ("localhost", "localhost"),
            ("Example.Test.", "example.test"),
            ("*.example.test", "*.example.test"),
            ("my_host-1", "my_host-1"),
            ("192.0.2.1", "192.0.2.1"),
            ("[2001:DB8::1]", "2001:db8::1"),
            ("::1", "::1"),
            ("xn--bcher-kva.example", "xn--bcher-kva.example"),
        ] {
            assert_eq!(parse_name(text).as_deref(), Ok(name));
        }
        let long = "a".repeat(64);
        for text in [
            "",
            ".",
            "*",
            "*.",
            "a..b",
            "-a",
            "a-",
            "a b",
            "https://a/",
            "a:80",
            "a.*",
            "**.a",
            "1.2.3.256",
            "a/b",
            &long,
        ] {
            assert!(parse_name(text).unwrap_err().contains("localhost"), "{text}");
        }
        assert!(parse_name("b\u{fc}cher.example").unwrap_err().contains("xn--"));
        assert!(parse_name(&["a"; 127].join(".")).is_ok() && parse_name(&["a"; 128].join(".")).is_err());
    }

    #[test]
    #[cfg(not(windows))]
    fn paths_are_quoted_for_the_shell_if_necessary() {
        assert_eq!(quote(Path::new("/a/b-c_1+2.pem")), "/a/b-c_1+2.pem");
        assert_eq!(quote(Path::new("/Application Support/it's")), r"'/Application Support/it'\''s'");
    }
}
