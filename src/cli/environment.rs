//! Environment variables as a fallback for command-line options. Adjusts clap's handling of them: empty variables count
//! as unset, flags accept boolean words, and the error message for an invalid value names its variable.

use std::ffi::OsString;

use clap::builder::BoolishValueParser;
use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Arg, ArgAction, ArgMatches, Command};

/// Current and former names of environment variables. The former one is used if the current one is unset or empty.
const FORMER_NAMES: [(&str, &str); 2] =
    [("SERVERD_BALANCE", "SERVERD_SPREAD"), ("SERVERD_MAX_HEADERS", "SERVERD_MAX_FIELDS")];

/// Parses `args`, with non-empty environment variables as a fallback for options that are not given.
///
/// # Errors
/// Returns a usage error, or the requested help text or version.
pub(super) fn try_get_matches_from(command: &Command, args: &[OsString]) -> Result<ArgMatches, clap::Error> {
    let effective = map_args(command.clone(), with_former_name);
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
        Some(ContextValue::String(option)) => option.split(' ').next().and_then(|option| option.strip_prefix("--")),
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
    // Kubernetes and Docker links set SERVERD_PORT=tcp://10.96.0.1:8888 for a service named serverd.
    let is_address = arg.get_id() == "port" && value.to_string_lossy().contains("://");
    !value.is_empty() && !is_address
}

/// Makes an option use the former name of its environment variable if the current one is not set.
fn with_former_name(arg: Arg) -> Arg {
    let find_former = |name: &std::ffi::OsStr| FORMER_NAMES.iter().find(|(current, _)| name == *current);
    match arg.get_env().and_then(find_former) {
        Some((_, former)) if !is_used(&arg) => arg.env(*former),
        _ => arg,
    }
}

/// Removes unused environment variables, and lets flags accept 1/0, true/false, yes/no and on/off.
fn with_variables(command: Command, is_used: fn(&Arg) -> bool) -> Command {
    map_args(command, move |arg| {
        let arg = if is_used(&arg) { arg } else { arg.env(None) };
        if matches!(arg.get_action(), ArgAction::SetTrue) { arg.value_parser(BoolishValueParser::new()) } else { arg }
    })
}

/// Applies `change` to all arguments, including those of subcommands.
fn map_args(command: Command, change: impl Fn(Arg) -> Arg + Copy) -> Command {
    command.mut_args(change).mut_subcommands(move |subcommand| subcommand.mut_args(change))
}
