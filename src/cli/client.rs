//! The commands that are clients: they have none of the server's options and look at no variable, since a health
//! check runs in the environment of the server it checks.

use std::ffi::OsString;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};

use super::{Color, Options, Task, duration};
use crate::check::{Check, Expect, Print, Target};
use crate::connect::Connect;
use crate::dial::Authority;

const EXAMPLES: &str = "\
Examples:
  serverd check http://127.0.0.1:8888/            print the status line; exit 0 when it is 2xx
  serverd check http://[::1]/ --expect 200,404    other statuses that are well
  serverd check tcp://db:5432 --retry 30          wait for a server to come up

Exit codes: 0 well, 1 not well, with one sentence on stderr why, 2 wrong usage.";

#[derive(Debug, Parser)]
#[command(name = "serverd", version, max_term_width = 100)]
struct Client {
    #[command(subcommand)]
    command: ClientCommand,
}

#[derive(Debug, Subcommand)]
enum ClientCommand {
    /// Ask a server once, as a health check does
    #[command(after_help = EXAMPLES)]
    Check(CheckArgs),
    /// Standard input to a server, and the server to standard output
    Connect(ConnectArgs),
    /// Make a line for `serverd files --auth` from a password
    #[cfg(feature = "files")]
    #[command(after_help = HASH_EXAMPLES)]
    Hash(HashArgs),
}

#[cfg(feature = "files")]
const HASH_EXAMPLES: &str = "\
The password is asked for on the terminal, or read as the first line of standard input.

Examples:
  serverd hash alice >> users                     then: serverd files --auth @users
  serverd files --auth \"$(serverd hash alice)\"   without a file
  htpasswd -nbB alice wonderland                  makes the same kind of line";

#[cfg(feature = "files")]
#[derive(Debug, Args)]
struct HashArgs {
    /// Whose password it is
    #[arg(value_parser = user_name)]
    name: String,

    /// Rounds as a power of two; one more takes twice as long
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u32).range(4..=16))]
    cost: u32,
}

/// RFC 7617 section 2: without a colon, and without control characters.
#[cfg(feature = "files")]
fn user_name(text: &str) -> Result<String, String> {
    if text.is_empty()
        || text.starts_with(['#', '@'])
        || text.contains(|letter: char| letter == ':' || letter.is_control())
    {
        return Err("a name without a colon, and without # or @ in front".into());
    }
    Ok(text.to_owned())
}

#[derive(Debug, Args)]
struct CheckArgs {
    /// `http://HOST:PORT/PATH`, which has to answer, or `tcp://HOST:PORT`, which has to accept
    #[arg(value_parser = Target::parse)]
    target: Target,

    /// What of the answer to print
    #[arg(long, value_enum, default_value_t = PrintName::Status)]
    print: PrintName,

    /// Statuses that are well, such as 200-299,404
    #[arg(long, value_name = "LIST", default_value = "200-299", value_parser = Expect::parse)]
    expect: Expect,

    /// What one try may take in all
    #[arg(long, value_name = "TIME", default_value = "5s", value_parser = duration)]
    wait: Duration,

    /// Further tries when the first fails
    #[arg(long, value_name = "N", default_value_t = 0)]
    retry: u32,

    /// The rest before each of them
    #[arg(long, value_name = "TIME", default_value = "1s", value_parser = duration)]
    every: Duration,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum PrintName {
    /// The status line
    Status,
    /// Status line and fields
    Head,
    /// The body
    Body,
    /// Head and body
    All,
}

#[derive(Debug, Args)]
struct ConnectArgs {
    /// `HOST:PORT`; an IPv6 address in brackets
    #[arg(value_name = "HOST:PORT", value_parser = authority)]
    server: Authority,

    /// What connecting may take
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = duration)]
    wait: Duration,
}

fn authority(text: &str) -> Result<Authority, String> {
    Authority::parse(text.strip_prefix("tcp://").unwrap_or(text), None)
}

/// Whether these words begin a client's command line.
pub(super) fn is_meant(words: &[OsString]) -> bool {
    let is_command = |word: Option<&OsString>| {
        let hash = cfg!(feature = "files") && word.is_some_and(|word| word == "hash");
        hash || word.is_some_and(|word| word == "check" || word == "connect")
    };
    is_command(words.get(1)) || (words.get(1).is_some_and(|word| word == "help") && is_command(words.get(2)))
}

pub(super) fn try_parse_from(words: Vec<OsString>) -> Result<Options, clap::Error> {
    let task = match Client::try_parse_from(words)?.command {
        ClientCommand::Check(args) => Task::Check(Check {
            target: args.target,
            print: match args.print {
                PrintName::Status => Print::Status,
                PrintName::Head => Print::Head,
                PrintName::Body => Print::Body,
                PrintName::All => Print::All,
            },
            expect: args.expect,
            wait: args.wait,
            retry: args.retry,
            every: args.every,
        }),
        #[cfg(feature = "files")]
        ClientCommand::Hash(args) => Task::Hash(crate::hash::Hash { name: args.name, cost: args.cost }),
        ClientCommand::Connect(args) => Task::Connect(Connect { authority: args.server, wait: args.wait }),
    };
    Ok(Options { task, log_level: log::LevelFilter::Warn, color: Color::Auto })
}

#[cfg(test)]
mod tests {
    use super::super::try_parse_from;
    use super::*;

    fn check(line: &str) -> Check {
        match try_parse_from(line.split(' ')).unwrap().task {
            Task::Check(check) => check,
            other => panic!("{line}: {other:?}"),
        }
    }

    fn complaint(line: &str) -> String {
        let error = try_parse_from(line.split(' ')).unwrap_err();
        assert_eq!(error.exit_code(), 2, "{line}");
        error.to_string()
    }

    #[test]
    fn a_check_has_defaults() {
        let seen = check("serverd check tcp://a:1");
        assert_eq!(seen.target, Target::Tcp(Authority { host: "a".into(), port: 1 }));
        assert_eq!((seen.print, seen.expect, seen.retry), (Print::Status, Expect::default(), 0));
        assert_eq!((seen.wait, seen.every), (Duration::from_secs(5), Duration::from_secs(1)));
        let seen = check("serverd check http://a/ --print all --expect 404 --wait 1s --retry 3 --every 10ms");
        assert_eq!((seen.print, seen.expect.holds(404), seen.retry), (Print::All, true, 3));
    }

    #[test]
    fn clients_take_none_of_the_servers_options() {
        for line in [
            "serverd check --port 1 tcp://a:1",
            "serverd --port 1 check tcp://a:1",
            "serverd -q connect a:1",
            "serverd connect a:1 --workers 2",
            "serverd check",
            "serverd check https://a/",
            "serverd connect a",
        ] {
            complaint(line);
        }
        assert!(complaint("serverd --port 1 check tcp://a:1").contains("none of the server's options"));
        let help = try_parse_from(["serverd", "check", "--help"]).unwrap_err().to_string();
        assert!(help.contains("--retry") && !help.contains("--port") && !help.contains("SERVERD_"), "{help}");
        let help = try_parse_from(["serverd", "help", "connect"]).unwrap_err().to_string();
        assert!(help.contains("HOST:PORT") && !help.contains("--port"), "{help}");
    }
}
