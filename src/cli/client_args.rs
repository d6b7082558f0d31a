//! The client commands: check, connect, hash and cert. They accept no server options and ignore environment variables,
//! because a health check runs in the environment of the server that it checks.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap::error::ErrorKind;
use clap::{Args, CommandFactory, Parser, Subcommand};

use super::values::duration;
use crate::client::cert::{Cert, parse_name};
use crate::client::check::{Check, Expect, Print, Target};
use crate::client::connect::{Authority, Connect};
use crate::client::tls_options::{TlsOptions, Trust};
use crate::client::{Client, Hash};

const CHECK_EXAMPLES: &str = "\
Examples:
  serverd check http://127.0.0.1:8888/           Print the status line; succeed if it is 2xx
  serverd check http://[::1]/ --expect 200,404   Accept other status codes
  serverd check tcp://db:5432 --retry 30         Wait for a server to come up
  serverd check https://db --min-days 14         Fail if the certificate expires within two weeks

Exit codes: 0 healthy, 1 unhealthy (the reason is printed to stderr), 2 usage error";

const CONNECT_EXAMPLES: &str = "\
Examples:
  serverd connect 127.0.0.1:8888                 Join a chat server
  echo hello | serverd connect [::1]:7           Send one line and print the reply
  serverd connect tls://example.org:443          Speak a protocol over TLS by hand

Exit codes: 0 connection closed, 1 connection failed or reset, 2 usage error";

#[derive(Debug, Parser)]
#[command(name = "serverd", version, max_term_width = 100)]
struct ClientCli {
    #[command(subcommand)]
    command: ClientCommand,
}

#[derive(Debug, Subcommand)]
enum ClientCommand {
    /// Check whether an HTTP or TCP server is healthy
    ///
    /// For container health checks and scripts. Sends a GET request to an HTTP server, or opens a connection to a TCP
    /// server, and reports the result as the exit code. With https:// and tls://, the certificate must be valid, unless
    /// --insecure is given; tls:// prints the date on which it expires.
    #[command(after_help = CHECK_EXAMPLES)]
    Check(CheckArgs),
    /// Connect stdin and stdout to a TCP server (like netcat)
    ///
    /// At the end of stdin, the sending side of the connection is shut down (half-close). Receiving continues until the
    /// server closes the connection. With --tls, some servers close at once when the sending side ends.
    #[command(after_help = CONNECT_EXAMPLES)]
    Connect(ConnectArgs),
    /// Hash a password for `serverd files --auth`
    ///
    /// Prints a line NAME:HASH with a bcrypt hash, in the same format as htpasswd -B.
    #[command(after_help = HASH_EXAMPLES)]
    Hash(HashArgs),
    /// Create a certificate for `--tls-cert`, signed by a local authority
    ///
    /// For development and private networks. The first call creates the authority in the data directory of the user; clients
    /// that trust it accept all of its certificates. This command changes no trust store, but prints how to. The certificate
    /// is valid for 820 days. Calling it again with the same names renews the certificate.
    #[command(after_help = CERT_EXAMPLES)]
    Cert(CertArgs),
}

const CERT_EXAMPLES: &str = "\
Examples:
  serverd cert localhost 127.0.0.1 ::1           Create localhost+2.pem and localhost+2-key.pem
  serverd cert '*.example.test' --out certs      Create a wildcard certificate in a directory
  serverd cert --print-ca                        Print the path of the authority's certificate";

#[derive(Debug, Args)]
struct CertArgs {
    /// Host names, wildcards such as *.example.test, and IP addresses
    #[arg(value_name = "NAME", value_parser = parse_name, required_unless_present = "print_ca")]
    names: Vec<String>,

    /// Directory for the certificate and its private key
    #[arg(long, value_name = "DIR", default_value = ".")]
    out: PathBuf,

    /// Overwrite files that are not a certificate of the local authority
    #[arg(long)]
    force: bool,

    /// Print the path of the authority's certificate, which clients have to trust
    #[arg(long, conflicts_with_all = ["names", "out", "force"])]
    print_ca: bool,
}

const HASH_EXAMPLES: &str = "\
Prompts for the password if stdin is a terminal; otherwise reads it from the first line of stdin.

Examples:
  serverd hash alice >> users                     Use with: serverd files --auth @users
  serverd files --auth \"$(serverd hash alice)\"    Use without a file
  htpasswd -nbB alice wonderland                  Create a line in the same format";

#[derive(Debug, Args)]
struct HashArgs {
    /// User name
    #[arg(value_parser = user_name)]
    name: String,

    /// Bcrypt cost; each increment doubles the hashing time
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u32).range(4..=16))]
    cost: u32,
}

/// Parses a user name. RFC 7617 section 2 forbids colons and control characters. A leading `#` marks a comment in a
/// file of users, and a leading `@` marks a file in `--auth`.
fn user_name(text: &str) -> Result<String, String> {
    if text.is_empty()
        || text.starts_with(['#', '@'])
        || text.contains(|character: char| character == ':' || character.is_control())
    {
        return Err("must not be empty, contain a colon or control character, or start with # or @".into());
    }
    Ok(text.to_owned())
}

#[derive(Debug, Args)]
struct CheckArgs {
    /// Server to check: `http[s]://HOST:PORT/PATH`, `[tcp://]HOST:PORT` or `tls://HOST:PORT`
    #[arg(value_parser = Target::parse)]
    target: Target,

    /// Part of the response to print
    #[arg(long, value_enum, value_name = "PART", default_value_t = Print::Status)]
    print: Print,

    /// Acceptable status codes, e.g. 200-299,404
    #[arg(long, value_name = "LIST", default_value = "200-299", value_parser = Expect::parse)]
    expect: Expect,

    /// Timeout of each attempt
    #[arg(long, value_name = "TIME", default_value = "5s", value_parser = duration)]
    wait: Duration,

    /// Maximum number of retries
    #[arg(long, value_name = "N", default_value_t = 0)]
    retry: u32,

    /// Delay between attempts
    #[arg(long, value_name = "TIME", default_value = "1s", value_parser = duration)]
    every: Duration,

    #[command(flatten)]
    security: TlsArgs,

    /// Fail if the certificate expires in fewer than N days
    #[arg(long, value_name = "N")]
    min_days: Option<u16>,
}

#[derive(Debug, Args)]
struct TlsArgs {
    /// Trust the certificates in FILE (PEM) in place of the authorities that the system trusts
    #[arg(long, value_name = "FILE", conflicts_with = "insecure", hide_short_help = true)]
    ca: Option<PathBuf>,

    /// Accept all certificates; anyone between client and server can read and change the data
    ///
    /// RSA keys must have at least 2,048 bits nevertheless.
    #[arg(long, hide_short_help = true)]
    insecure: bool,

    /// Present the client certificate in FILE (PEM, with its chain) to a server that asks for one
    #[arg(long, value_name = "FILE", requires = "key", hide_short_help = true)]
    cert: Option<PathBuf>,

    /// Private key of --cert (PEM: PKCS#8, SEC1 or PKCS#1)
    #[arg(long, value_name = "FILE", requires = "cert", hide_short_help = true)]
    key: Option<PathBuf>,
}

impl TlsArgs {
    fn is_given(&self) -> bool {
        self.ca.is_some() || self.insecure || self.cert.is_some()
    }

    fn tls(self) -> TlsOptions {
        let mut tls = TlsOptions::from(match self.ca {
            Some(path) => Trust::File(path),
            None if self.insecure => Trust::Any,
            None => Trust::System,
        });
        tls.certificate = self.cert.zip(self.key);
        tls
    }
}

#[derive(Debug, Args)]
struct ConnectArgs {
    /// Server to connect to; enclose an IPv6 address in brackets. tls://HOST:PORT implies --tls
    #[arg(value_name = "HOST:PORT", value_parser = server)]
    server: Server,

    /// Timeout for establishing the connection
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = duration)]
    wait: Duration,

    /// Use TLS
    #[arg(long)]
    tls: bool,

    #[command(flatten)]
    security: TlsArgs,
}

/// The server of `serverd connect`.
#[derive(Clone, Debug)]
struct Server {
    authority: Authority,
    is_secure: bool,
}

fn server(text: &str) -> Result<Server, String> {
    let (address, is_secure) = match text.strip_prefix("tls://") {
        Some(address) => (address, true),
        None => (text.strip_prefix("tcp://").unwrap_or(text), false),
    };
    Ok(Server { authority: Authority::parse(address, None)?, is_secure })
}

/// The names of the client commands.
const COMMANDS: [&str; 4] = ["check", "connect", "hash", "cert"];

/// Returns whether `args` runs a client command or requests its help.
pub(super) fn is_client_command(args: &[OsString]) -> bool {
    let is_command = |arg: Option<&OsString>| arg.is_some_and(|arg| COMMANDS.iter().any(|command| arg == command));
    is_command(args.get(1)) || (args.get(1).is_some_and(|arg| arg == "help") && is_command(args.get(2)))
}

/// Parses the command line of a client command.
///
/// # Errors
/// Returns a usage error, or the requested help text or version.
pub(super) fn try_parse_from(args: Vec<OsString>) -> Result<Client, clap::Error> {
    let conflict = |message| Err(ClientCli::command().error(ErrorKind::ArgumentConflict, message));
    Ok(match ClientCli::try_parse_from(args)?.command {
        ClientCommand::Check(args) => {
            if !args.target.is_secure() && (args.security.is_given() || args.min_days.is_some()) {
                return conflict("--ca, --insecure, --cert and --min-days need a target with https:// or tls://");
            }
            let CheckArgs { target, print, expect, wait: timeout, retry, every: interval, security, min_days } = args;
            let tls = security.tls();
            Client::Check(Check { target, print, expect, timeout, retry, interval, tls, days_min: min_days })
        }
        ClientCommand::Hash(HashArgs { name, cost }) => Client::Hash(Hash { name, cost }),
        ClientCommand::Cert(CertArgs { names, out, force, .. }) => Client::Cert(Cert { names, out, force }),
        ClientCommand::Connect(ConnectArgs {
            server: Server { authority, is_secure },
            wait: timeout,
            tls,
            security,
        }) => {
            let is_secure = is_secure || tls;
            if !is_secure && security.is_given() {
                return conflict("--ca, --insecure and --cert need --tls");
            }
            Client::Connect(Connect { authority, timeout, tls: is_secure.then(|| security.tls()) })
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(line: &str) -> Result<Client, clap::Error> {
        try_parse_from(line.split(' ').map(OsString::from).collect())
    }

    fn check(line: &str) -> Check {
        match parsed(line).unwrap() {
            Client::Check(check) => check,
            other => panic!("{line}: {other:?}"),
        }
    }

    fn usage_error(line: &str) -> String {
        let error = parsed(line).unwrap_err();
        assert_eq!(error.exit_code(), 2, "{line}");
        error.to_string()
    }

    #[test]
    fn check_has_defaults() {
        let parsed = check("serverd check tcp://a:1");
        assert_eq!(parsed.target, Target::Tcp(Authority { host: "a".into(), port: 1 }));
        assert_eq!((parsed.print, parsed.expect, parsed.retry), (Print::Status, Expect::default(), 0));
        assert_eq!((parsed.timeout, parsed.interval), (Duration::from_secs(5), Duration::from_secs(1)));
        let parsed = check("serverd check http://a/ --print all --expect 404 --wait 1s --retry 3 --every 10ms");
        assert_eq!((parsed.print, parsed.expect.contains(404), parsed.retry), (Print::All, true, 3));
    }

    #[test]
    fn certificates_are_verified_unless_options_say_otherwise() {
        let parsed_check = check("serverd check https://a/ --min-days 7");
        assert_eq!((parsed_check.tls, parsed_check.days_min), (TlsOptions::default(), Some(7)));
        assert_eq!(check("serverd check tls://a:1 --insecure").tls, Trust::Any.into());
        let tls = check("serverd check https://a/ --ca b --cert c --key d").tls;
        assert_eq!((tls.trust, tls.certificate), (Trust::File("b".into()), Some(("c".into(), "d".into()))));
        let tls = |line: &str| match parsed(line).unwrap() {
            Client::Connect(connect) => connect.tls,
            other => panic!("{line}: {other:?}"),
        };
        assert_eq!(tls("serverd connect tcp://a:1"), None);
        assert_eq!(tls("serverd connect tls://a:1"), Some(TlsOptions::default()));
        assert_eq!(tls("serverd connect a:1 --tls --insecure"), Some(Trust::Any.into()));
    }

    #[test]
    fn certificates_have_names_unless_the_authority_is_printed() {
        for (line, names) in
            [("serverd cert A ::1", vec!["a".into(), "::1".into()]), ("serverd cert --print-ca", vec![])]
        {
            let Client::Cert(cert) = parsed(line).unwrap() else { panic!("{line}") };
            assert_eq!(cert, Cert { names, out: ".".into(), force: false }, "{line}");
        }
    }

    #[test]
    fn client_commands_accept_no_server_options() {
        for line in [
            "serverd check --port 1 tcp://a:1",
            "serverd connect a:1 --workers 2",
            "serverd check",
            "serverd connect a",
            "serverd check http://a/ --insecure",
            "serverd check tcp://a:1 --min-days 3",
            "serverd check https://a/ --insecure --ca b",
            "serverd connect a:1 --ca b",
            "serverd check https://a/ --cert b",
            "serverd connect a:1 --tls --key b",
            "serverd connect a:1 --cert b --key c",
            "serverd cert",
            "serverd cert a:80",
            "serverd cert --print-ca a",
        ] {
            usage_error(line);
        }
        let help = parsed("serverd check --help").unwrap_err().to_string();
        assert!(help.contains("--retry") && !help.contains("--port") && !help.contains("SERVERD_"), "{help}");
        let help = parsed("serverd help connect").unwrap_err().to_string();
        assert!(help.contains("HOST:PORT") && !help.contains("--port"), "{help}");
    }
}
