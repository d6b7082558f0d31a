//! The client commands: check, connect and hash. They accept no server options and ignore environment variables,
//! because a health check runs in the environment of the server that it checks.

use std::ffi::OsString;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};

use super::values::duration;
use crate::client::check::{Check, Expect, Print, Target};
use crate::client::connect::{Authority, Connect};
use crate::client::{Client, Hash};

const CHECK_EXAMPLES: &str = "\
Examples:
  serverd check http://127.0.0.1:8888/           Print the status line; succeed if it is 2xx
  serverd check http://[::1]/ --expect 200,404   Accept other status codes
  serverd check tcp://db:5432 --retry 30         Wait for a server to come up

Exit codes: 0 healthy, 1 unhealthy (the reason is printed to stderr), 2 usage error";

const CONNECT_EXAMPLES: &str = "\
Examples:
  serverd connect 127.0.0.1:8888                 Join a chat server
  echo hello | serverd connect [::1]:7           Send one line and print the reply

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
    /// server, and reports the result as the exit code.
    #[command(after_help = CHECK_EXAMPLES)]
    Check(CheckArgs),
    /// Connect stdin and stdout to a TCP server (like netcat)
    ///
    /// At the end of stdin, the sending side of the connection is shut down (half-close). Receiving continues until the
    /// server closes the connection.
    #[command(after_help = CONNECT_EXAMPLES)]
    Connect(ConnectArgs),
    /// Hash a password for `serverd files --auth`
    ///
    /// Prints a line NAME:HASH with a bcrypt hash, in the same format as htpasswd -B.
    #[command(after_help = HASH_EXAMPLES)]
    Hash(HashArgs),
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
    /// Server to check: `http://HOST:PORT/PATH`, or `[tcp://]HOST:PORT`
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
}

#[derive(Debug, Args)]
struct ConnectArgs {
    /// Server to connect to; enclose an IPv6 address in brackets
    #[arg(value_name = "HOST:PORT", value_parser = authority)]
    server: Authority,

    /// Timeout for establishing the connection
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = duration)]
    wait: Duration,
}

fn authority(text: &str) -> Result<Authority, String> {
    Authority::parse(text.strip_prefix("tcp://").unwrap_or(text), None)
}

/// Returns whether `args` runs a client command or requests its help.
pub(super) fn is_client_command(args: &[OsString]) -> bool {
    let is_command =
        |arg: Option<&OsString>| arg.is_some_and(|arg| arg == "check" || arg == "connect" || arg == "hash");
    is_command(args.get(1)) || (args.get(1).is_some_and(|arg| arg == "help") && is_command(args.get(2)))
}

/// Parses the command line of a client command.
///
/// # Errors
/// Returns a usage error, or the requested help text or version.
pub(super) fn try_parse_from(args: Vec<OsString>) -> Result<Client, clap::Error> {
    Ok(match ClientCli::try_parse_from(args)?.command {
        ClientCommand::Check(CheckArgs { target, print, expect, wait: timeout, retry, every: interval }) => {
            Client::Check(Check { target, print, expect, timeout, retry, interval })
        }
        ClientCommand::Hash(HashArgs { name, cost }) => Client::Hash(Hash { name, cost }),
        ClientCommand::Connect(ConnectArgs { server: authority, wait: timeout }) => {
            Client::Connect(Connect { authority, timeout })
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
    fn client_commands_accept_no_server_options() {
        for line in [
            "serverd check --port 1 tcp://a:1",
            "serverd connect a:1 --workers 2",
            "serverd check",
            "serverd check https://a/",
            "serverd connect a",
        ] {
            usage_error(line);
        }
        let help = parsed("serverd check --help").unwrap_err().to_string();
        assert!(help.contains("--retry") && !help.contains("--port") && !help.contains("SERVERD_"), "{help}");
        let help = parsed("serverd help connect").unwrap_err().to_string();
        assert!(help.contains("HOST:PORT") && !help.contains("--port"), "{help}");
    }
}
