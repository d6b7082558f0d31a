//! Command-line parsing: turns options and environment variables into a validated [`Config`]. [`parse`] also prints
//! help and errors, and [`with_advice`] adds advice to errors of a server at its start, which names options.

use std::error::Error;
use std::ffi::OsString;
use std::io;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::parser::ValueSource;
use clap::{ArgMatches, CommandFactory, FromArgMatches};
use log::LevelFilter;

use self::server_args::{Cli, CommandName};
use crate::client::Client;
use crate::server::{Command, Config, Logging, StartError, StartErrorKind};

mod app_args;
mod client_args;
mod environment;
mod server_args;
mod values;

pub use server_args::Color;

/// The parsed command line.
#[derive(Clone, Debug)]
pub struct Options {
    /// The command to run.
    pub task: Task,
    /// The log level of the process.
    pub log_level: LevelFilter,
    /// When to use colors in the log.
    pub color: Color,
    /// Names of environment variables that look like server options, but are not.
    pub unknown_variables: Vec<String>,
}

/// A command with its options.
#[derive(Clone, Debug)]
pub enum Task {
    /// Run a server.
    Serve(Box<Config>, Command, Logging),
    /// Run a client command.
    Client(Client),
}

/// Parses the command line of this process. Prints help or an error and exits if there is no command to run.
pub fn parse() -> Options {
    try_parse_from(std::env::args_os()).unwrap_or_else(|error| error.exit())
}

/// Parses `args`, the first of which is the name of the program.
///
/// # Errors
/// Returns a usage error, or the requested help text or version, as a [`clap::Error`] with its exit code.
pub fn try_parse_from<T>(args: impl IntoIterator<Item = T>) -> Result<Options, clap::Error>
where
    T: Into<OsString>,
{
    let args: Vec<OsString> = args.into_iter().map(Into::into).collect();
    if client_args::is_client_command(&args) {
        let task = Task::Client(client_args::try_parse_from(args)?);
        return Ok(Options { task, log_level: LevelFilter::Warn, color: Color::Auto, unknown_variables: Vec::new() });
    }
    let command = environment::with_names(Cli::command());
    let matches = environment::try_get_matches_from(&command, &args).map_err(suggest_meant_command)?;
    let cli = prefer_cli_over_env(matches)?;
    if cli.quiet && cli.verbose > 0 {
        let advice = "--quiet (SERVERD_QUIET) and --verbose (SERVERD_VERBOSE) cannot be used together; remove one";
        return Err(Cli::command().error(ErrorKind::ArgumentConflict, advice));
    }
    if cli.is_client() {
        let advice = "this command accepts no server options; remove those before it, e.g. serverd check TARGET";
        return Err(Cli::command().error(ErrorKind::ArgumentConflict, advice));
    }
    if let Err(advice) = cli.check_tls() {
        return Err(Cli::command().error(ErrorKind::MissingRequiredArgument, advice));
    }
    if let Err(advice) = cli.check_proxies() {
        return Err(Cli::command().error(ErrorKind::MissingRequiredArgument, advice));
    }
    let unknown_variables = environment::unknown_variables(&command);
    let (log_level, color, config, logging) = (cli.log_level(), cli.color, cli.config(), cli.logging());
    let task = Task::Serve(Box::new(config), cli.into_command(), logging);
    Ok(Options { task, log_level, color, unknown_variables })
}

/// Makes the command line take precedence over the environment also between related options: `-v` over `SERVERD_QUIET`,
/// `-q` over `SERVERD_VERBOSE`, and a `--body` before the command over `SERVERD_BODY`.
fn prefer_cli_over_env(mut matches: ArgMatches) -> Result<Cli, clap::Error> {
    let on_cli = |matches: &ArgMatches, id| matches.value_source(id) == Some(ValueSource::CommandLine);
    let (quiet, verbose) = (on_cli(&matches, "quiet"), on_cli(&matches, "verbose"));
    let http_body = matches.subcommand_matches("http").is_some_and(|http| on_cli(http, "body"));
    let files = matches.subcommand_matches("files");
    if files.is_some_and(|files| on_cli(files, "directory") && on_cli(files, "directory_option")) {
        let advice = "the directory is given twice; remove DIR or --directory (--root)";
        return Err(Cli::command().error(ErrorKind::ArgumentConflict, advice));
    }
    let mut cli = Cli::from_arg_matches_mut(&mut matches).map_err(|error| error.format(&mut Cli::command()))?;
    cli.quiet &= quiet || !verbose;
    cli.verbose *= u8::from(verbose || !quiet);
    if let Some(CommandName::Http(http)) = &mut cli.command
        && !http_body
    {
        // It can only come from the environment variable, which the top-level --body has read, too.
        http.body = None;
    }
    Ok(cli)
}

/// Adds the command that was probably meant to the error for a word that is not a command.
fn suggest_meant_command(mut error: clap::Error) -> clap::Error {
    let meant = match error.get(ContextKind::InvalidSubcommand) {
        Some(ContextValue::String(word)) if error.kind() == ErrorKind::InvalidSubcommand => values::meant_command(word),
        _ => None,
    };
    if let Some(command) = meant {
        let advice = format!("did you mean `{command}`?");
        error.remove(ContextKind::SuggestedSubcommand);
        error.insert(ContextKind::Suggested, ContextValue::StyledStrs(vec![advice.into()]));
    }
    error
}

/// Returns the sentence for an error, with advice if there is any.
pub fn with_advice(error: &StartError) -> String {
    let source = || error.source().and_then(|source| source.downcast_ref::<io::Error>());
    let advice = match error.kind() {
        StartErrorKind::Host => Some("set --host to an address of this machine".into()),
        StartErrorKind::Listen(_) => source().map(|source| listen_advice(source, "--port")),
        StartErrorKind::ListenPlain(_) => source().map(|source| listen_advice(source, "--https-redirect")),
        StartErrorKind::Backend => Some("use --backend select or omit the option".into()),
        StartErrorKind::Balance => Some("use --balance least-connections or omit the option".into()),
        _ => None,
    };
    advice.map_or_else(|| error.to_string(), |advice: String| format!("{error}; {advice}"))
}

/// Returns advice about a port that is set with `option`.
fn listen_advice(error: &io::Error, option: &str) -> String {
    match error.kind() {
        io::ErrorKind::AddrInUse => format!("stop the process using it or choose another with {option}"),
        io::ErrorKind::PermissionDenied => format!("choose a port above 1023 with {option}"),
        io::ErrorKind::AddrNotAvailable => "choose another with --host".into(),
        _ => format!("choose another with --host or {option}"),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::server_args::DEFAULT_BODY;
    use super::*;
    use crate::http1::Limits;
    use crate::httpserver::ClientIpHeader;
    use crate::r#loop::ProxyMode;
    use crate::server::{Backend, Balance, TlsConfig};
    use crate::tls::{ClientAuth, TlsVersion};

    fn parsed(line: &str) -> (Config, Command) {
        match try_parse_from(line.split(' ')).unwrap().task {
            Task::Serve(config, command, _) => (*config, command),
            other @ Task::Client(_) => panic!("{line}: {other:?}"),
        }
    }

    fn usage_error_or_help(line: &str) -> String {
        try_parse_from(line.split(' ')).unwrap_err().to_string()
    }

    fn usage_error(line: &str) -> String {
        let error = try_parse_from(line.split(' ')).unwrap_err();
        assert_eq!(error.exit_code(), 2, "{line}");
        error.to_string()
    }

    #[test]
    fn the_clap_definition_is_valid() {
        Cli::command().debug_assert();
    }

    #[test]
    fn defaults_apply_without_options() {
        let (config, command) = parsed("serverd");
        assert_eq!((config.host.as_str(), config.port, config.workers), ("127.0.0.1", 8888, 1));
        assert_eq!(config.backend, Backend::Auto);
        assert_eq!(config.timeout, None);
        assert_eq!(config.timeouts.idle, Some(Duration::from_secs(75)));
        assert_eq!(command, Command::Http { body: DEFAULT_BODY.into(), limits: Limits::default() });
    }

    #[test]
    fn global_options_may_precede_or_follow_the_command() {
        for line in ["serverd -p 1 http --body x", "serverd http --body x -p 1", "serverd --body x --port 1"] {
            let (config, command) = parsed(line);
            assert_eq!(config.port, 1, "{line}");
            assert_eq!(command, Command::Http { body: "x".into(), limits: Limits::default() }, "{line}");
        }
    }

    #[test]
    fn times_and_sizes_have_units() {
        let (config, command) =
            parsed("serverd --timeout 500ms --idle-timeout 2m --max-body 3GiB --max-head 1k whoami");
        assert_eq!(config.timeout, Some(Duration::from_millis(500)));
        assert_eq!(config.timeouts.idle, Some(Duration::from_secs(120)));
        let limits = Limits { body_bytes_max: 3 << 30, head_bytes_max: 1024, ..Limits::default() };
        assert_eq!(command, Command::Whoami { limits });
        let (config, _) = parsed("serverd --max-queue 1MiB --max-connections 9 --drain-timeout 2s --head-timeout 3s");
        assert_eq!(config.loop_limits.output_bytes_max, 1 << 20);
        assert_eq!(config.loop_limits.output_resume_bytes, 1 << 19);
        assert_eq!((config.connections_max, config.loop_limits.drain), (Some(9), Duration::from_secs(2)));
        assert_eq!(config.timeouts.silent, Some(Duration::from_secs(3)));
        assert!(usage_error("serverd --timeout 5").contains("use 5s"));
        assert!(usage_error("serverd --timeout 0s").contains("greater than zero"));
        assert!(usage_error("serverd --timeout 5y").contains("unknown unit"));
        assert!(usage_error("serverd --max-head 65KiB").contains("and 64KiB"));
        assert!(usage_error("serverd --max-body x").contains("start with a number"));
    }

    #[test]
    fn certificates_and_private_keys_come_in_pairs() {
        assert_eq!(parsed("serverd").0.tls, None);
        assert_eq!(parsed("serverd --tls").0.tls, Some(TlsConfig::default()));
        let (config, _) = parsed("serverd --tls-cert a,b --tls-key c --tls-key d --tls-min-version 1.3");
        let expected = TlsConfig::from_files([("a", "c"), ("b", "d")]).version_min(TlsVersion::Tls13);
        assert_eq!(config.tls, Some(expected));
        let (config, _) = parsed("serverd --tls --tls-client-ca a --tls-client-auth optional");
        let expected = TlsConfig::default().client_ca(Some("a".into())).client_auth(ClientAuth::Optional);
        assert_eq!(config.tls, Some(expected));
        assert!(usage_error("serverd --tls --tls-client-auth required").contains("needs --tls-client-ca"));
        assert!(usage_error("serverd --tls-client-ca a").contains("needs --tls or --tls-cert"));
        assert!(usage_error("serverd --tls-min-version 1.3").contains("needs TLS; add --tls"));
        assert!(usage_error("serverd --tls-cert a").contains("needs the --tls-key"));
        assert!(usage_error("serverd --tls-cert a --tls-key b,c").contains("needs the --tls-cert"));
        assert!(usage_error("serverd --tls --tls-min-version 1.1").contains("must be 1.2 or 1.3"));
    }

    #[test]
    fn the_redirect_to_https_and_hsts_need_tls() {
        let (config, _) = parsed("serverd --tls --port 443 --https-redirect 80 --acme-webroot /var/www/acme --hsts 1d");
        assert_eq!(config.tls, Some(TlsConfig::default().plain_port(80)));
        assert_eq!(config.http.acme_webroot.as_deref(), Some(std::path::Path::new("/var/www/acme")));
        assert_eq!(config.http.hsts, Some(Duration::from_secs(86_400)));
        for (line, message) in [
            ("serverd --https-redirect 80", "--https-redirect needs TLS; add --tls,"),
            ("serverd --hsts 1d", "--hsts needs TLS; add --tls,"),
            ("serverd files --tls --acme-webroot x", "--acme-webroot needs --https-redirect"),
            ("serverd --tls --port 80 --https-redirect 80", "must differ from --port"),
            ("serverd --tls --https-port 443", "--https-port needs --https-redirect"),
            ("serverd --tls --https-redirect 80 --https-port 0", "0 is not in 1..=65535"),
        ] {
            assert!(usage_error(line).contains(message), "{line}");
        }
    }

    #[test]
    fn the_proxy_protocol_needs_trusted_proxies() {
        let (config, _) = parsed("serverd --trusted-proxies loopback,10.0.0.0/8 --proxy-protocol required");
        assert_eq!(config.trusted_proxies, "10.0.0.0/8,loopback".parse().unwrap());
        assert_eq!(config.proxy_protocol, ProxyMode::Required);
        assert_eq!(config.http.client_ip_header, ClientIpHeader::XForwardedFor);
        let (config, _) = parsed("serverd --client-ip-header forwarded");
        assert_eq!(
            (config.http.client_ip_header, config.trusted_proxies.is_empty()),
            (ClientIpHeader::Forwarded, true)
        );
        for mode in ["optional", "required"] {
            let line = format!("serverd --proxy-protocol {mode}");
            assert!(usage_error(&line).contains("needs --trusted-proxies"));
        }
        assert!(usage_error("serverd --trusted-proxies 10.0.0.1/8").contains("use 10.0.0.0/8"));
    }

    #[test]
    fn invalid_values_are_usage_errors() {
        for line in [
            "serverd -v -q",
            "serverd --port 65536",
            "serverd nothing",
            "serverd --workers 2000",
            "serverd --host=",
            "serverd --backend poll",
        ] {
            usage_error(line);
        }
    }

    #[test]
    fn every_option_has_an_environment_variable() {
        let cli = environment::with_names(Cli::command());
        let subcommands = ["chat", "files"].into_iter().filter_map(|name| cli.find_subcommand(name));
        let options: Vec<_> = subcommands.flat_map(clap::Command::get_arguments).chain(cli.get_arguments()).collect();
        for option in options.iter().filter(|option| !option.is_hide_set()) {
            let name = option.get_long().unwrap_or("dir");
            let expected = format!("SERVERD_{}", name.to_uppercase().replace('-', "_"));
            assert_eq!(option.get_env().and_then(|name| name.to_str()), Some(expected.as_str()));
        }
        assert!(options.len() > 40, "{}", options.len());
    }

    #[test]
    fn options_have_the_names_that_other_servers_use() {
        for name in ["--bind", "--address", "--interface"] {
            assert_eq!(parsed(&format!("serverd {name} ::1")).0.host, "::1");
        }
        assert_eq!(parsed("serverd --threads auto").0.workers, 0);
        for line in ["serverd files --directory x", "serverd files --root x", "serverd files x"] {
            assert!(matches!(parsed(line).1, Command::Files(files) if files.directory.as_os_str() == "x"), "{line}");
        }
        assert!(usage_error("serverd files x --root y").contains("--directory"));
        let help = usage_error_or_help("serverd --help") + &usage_error_or_help("serverd files --help");
        for name in ["--bind", "--address", "--interface", "--threads", "--directory", "--root"] {
            assert!(!help.contains(name), "{name}");
        }
    }

    #[test]
    fn the_command_that_was_probably_meant_is_suggested() {
        let error = usage_error("serverd 8000");
        assert!(error.contains("unrecognized") && error.contains("tip: did you mean `serverd --port 8000`"), "{error}");
        assert!(usage_error("serverd -v .").contains("`serverd files .`"));
        assert!(usage_error("serverd --host 127.0.0.1:8080").contains("--host 127.0.0.1 --port 8080"));
        assert!(usage_error("serverd fils").contains("'files'"));
    }

    #[test]
    fn client_commands_come_first() {
        for line in ["serverd --port 1 check tcp://a:1", "serverd -q connect a:1"] {
            assert!(usage_error(line).contains("no server options"), "{line}");
        }
    }

    #[test]
    fn former_option_names_are_still_accepted() {
        let (config, command) = parsed("serverd --spread fewest --max-fields 7");
        assert_eq!(config.balance, Balance::LeastConnections);
        assert!(matches!(command, Command::Http { limits, .. } if limits.headers_max == 7));
        let (config, _) = parsed("serverd --balance least-connections");
        assert_eq!(config.balance, Balance::LeastConnections);
    }
}
