//! Environment variables as a fallback for command-line options.
//!
//! Their names are derived from those of the options: `--max-body` is `SERVERD_MAX_BODY`. Adjusts clap's handling of
//! them: empty variables count as unset, flags accept boolean words, and the error message for an invalid value names
//! its variable.

use std::ffi::{OsStr, OsString};

use clap::builder::BoolishValueParser;
use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Arg, ArgAction, ArgMatches, Command};

use super::values::repeated_flag;

/// The beginning of the name of every variable.
const PREFIX: &str = "SERVERD_";

/// Environment variables and another name for each, which is used if the first one is unset or empty: the name that
/// hosting platforms use, and former names.
const OTHER_NAMES: [(&str, &str); 3] =
    [("SERVERD_PORT", "PORT"), ("SERVERD_BALANCE", "SERVERD_SPREAD"), ("SERVERD_MAX_HEADERS", "SERVERD_MAX_FIELDS")];

/// The variable of the chat's password. It has no option, since other users can see command lines.
pub(super) const PASSWORD: &str = "SERVERD_PASSWORD";

/// Gives each option its environment variable, and the argument DIR, too.
pub(super) fn with_names(command: Command) -> Command {
    map_args(command, |arg| {
        let long = arg.get_long().map(str::to_owned);
        let positional = || arg.get_value_names().map(|names| names[0].to_string());
        match long.or_else(positional).filter(|_| !arg.is_hide_set()) {
            Some(name) => arg.env(PREFIX.to_owned() + &name.to_uppercase().replace('-', "_")).hide_env_values(true),
            None => arg,
        }
    })
}

/// Returns the names of non-empty environment variables that have the prefix of those of the options, but belong to no
/// option.
pub(super) fn unknown_variables(command: &Command) -> Vec<String> {
    let args = command.get_subcommands().flat_map(Command::get_arguments).chain(command.get_arguments());
    let known: Vec<_> = args.filter_map(Arg::get_env).chain(OTHER_NAMES.map(|(_, other)| OsStr::new(other))).collect();
    let variables = std::env::vars_os().filter(|(name, value)| {
        let (name_text, value) = (name.to_string_lossy(), value.to_string_lossy());
        let is_unknown = name_text.starts_with(PREFIX) && !known.contains(&name.as_os_str()) && name != PASSWORD;
        is_unknown && !value.is_empty() && !is_service_link(&name_text, &value)
    });
    let mut names: Vec<_> = variables.map(|(name, _)| name.to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

/// Returns whether a variable is one of those that Kubernetes and Docker links set for a service whose name begins with
/// serverd: `SERVERD_SERVICE_HOST`, `SERVERD_PORT_8888_TCP_ADDR`, `SERVERD_PORT=tcp://10.96.0.1:8888` and so on.
fn is_service_link(name: &str, value: &str) -> bool {
    name.contains("_SERVICE_") || name.contains("_PORT_") || value.contains("://")
}

/// Parses `args`, with non-empty environment variables as a fallback for options that are not given.
///
/// # Errors
/// Returns a usage error, or the requested help text or version.
pub(super) fn try_get_matches_from(command: &Command, args: &[OsString]) -> Result<ArgMatches, clap::Error> {
    let effective = map_args(command.clone(), with_other_name);
    let parse = |is_used: fn(&Arg) -> bool| with_variables(effective.clone(), is_used).try_get_matches_from(args);
    parse(is_used).map_err(|error| match error.kind() {
        // The help text does not depend on which variables are set. `-h` omits their names, `--help` shows them.
        ErrorKind::DisplayHelp => {
            let short = args.iter().any(|arg| arg == "-h");
            let help = map_args(with_variables(command.clone(), |_| true), move |arg| arg.hide_env(short));
            help.try_get_matches_from(args).err().unwrap_or(error)
        }
        // The command line alone is valid, so the error comes from a variable.
        _ if parse(|_| false).is_ok() => blame_env_var(&effective, error),
        _ => error,
    })
}

/// Adds the name of the environment variable that holds the invalid value to the error message.
fn blame_env_var(command: &Command, mut error: clap::Error) -> clap::Error {
    let mut args = command.get_subcommands().flat_map(Command::get_arguments).chain(command.get_arguments());
    // For example: --port <N>
    let option = match error.get(ContextKind::InvalidArg) {
        Some(ContextValue::String(option)) => {
            // For a flag that may be repeated: --verbose...
            option.split([' ', '.']).next().and_then(|option| option.strip_prefix("--"))
        }
        _ => None,
    };
    let arg = option.and_then(|long| args.find(|arg| arg.get_long() == Some(long)));
    if let Some(name) = arg.and_then(Arg::get_env) {
        let advice = format!("the value comes from the environment variable {}", name.display());
        error.insert(ContextKind::Suggested, ContextValue::StyledStrs(vec![advice.into()]));
    }
    error
}

/// Returns whether the environment variable of an option is used. An empty one counts as unset.
fn is_used(arg: &Arg) -> bool {
    let value = arg.get_env().and_then(std::env::var_os).unwrap_or_default();
    // Kubernetes and Docker links set SERVERD_PORT=tcp://10.96.0.1:8888 for a service named serverd, and
    // SERVERD_HTTPS_PORT for one named serverd-https.
    let is_address =
        (arg.get_id() == "port" || arg.get_id() == "https_port") && value.to_string_lossy().contains("://");
    !value.is_empty() && !is_address
}

/// Makes an option use the other name of its environment variable if the first one is not set.
fn with_other_name(arg: Arg) -> Arg {
    let find_other = |name: &OsStr| OTHER_NAMES.iter().find(|(first, _)| name == *first);
    match arg.get_env().and_then(find_other) {
        Some((_, other)) if !is_used(&arg) => arg.env(*other),
        _ => arg,
    }
}

/// Removes unused environment variables, and lets flags accept 1/0, true/false, yes/no and on/off.
fn with_variables(command: Command, is_used: fn(&Arg) -> bool) -> Command {
    map_args(command, move |arg| {
        let arg = if is_used(&arg) { arg } else { arg.env(None) };
        match arg.get_action() {
            ArgAction::SetTrue => arg.value_parser(BoolishValueParser::new()),
            ArgAction::Count => arg.value_parser(repeated_flag),
            _ => arg,
        }
    })
}

/// Applies `change` to all arguments, including those of subcommands.
fn map_args(command: Command, change: impl Fn(Arg) -> Arg + Copy) -> Command {
    command.mut_args(change).mut_subcommands(move |subcommand| subcommand.mut_args(change))
}
