//! The environment beside the command line: which variables count, what they say to flags, and which one to blame.

use std::ffi::OsString;

use clap::builder::BoolishValueParser;
use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Arg, ArgAction, ArgMatches, Command};

/// Reads these words, and of the variables those that count.
///
/// # Errors
/// What clap would print.
pub(super) fn try_get_matches_from(command: &Command, words: &[OsString]) -> Result<ArgMatches, clap::Error> {
    let read = |counts: fn(&Arg) -> bool| with_variables(command.clone(), counts).try_get_matches_from(words);
    read(counts).map_err(|error| match error.kind() {
        // The help tells every variable, also one that does not count now.
        ErrorKind::DisplayHelp => read(|_| true).err().unwrap_or(error),
        // The command line is well by itself.
        _ if read(|_| false).is_ok() => naming_the_variable(command, error),
        _ => error,
    })
}

/// Adds the name of the variable that holds the value.
fn naming_the_variable(command: &Command, mut error: clap::Error) -> clap::Error {
    let mut args = command.get_subcommands().flat_map(Command::get_arguments).chain(command.get_arguments());
    // As in: --port <N>
    let option = match error.get(ContextKind::InvalidArg) {
        Some(ContextValue::String(option)) => option.split(' ').next().and_then(|option| option.strip_prefix("--")),
        _ => None,
    };
    let arg = option.and_then(|long| args.find(|arg| arg.get_long() == Some(long)));
    if let Some(name) = arg.and_then(Arg::get_env) {
        let advice = format!("the value is that of the environment variable {}", name.display());
        error.insert(ContextKind::Suggested, ContextValue::StyledStrs(vec![advice.into()]));
    }
    error
}

/// Whether the variable of an option is to be looked at: one that is empty is as good as none.
fn counts(arg: &Arg) -> bool {
    let value = arg.get_env().and_then(std::env::var_os).unwrap_or_default();
    // Beside a service named serverd, Kubernetes and Docker's links set SERVERD_PORT=tcp://10.96.0.1:8888.
    let is_address = arg.get_id() == "port" && value.to_string_lossy().contains("://");
    !value.is_empty() && !is_address
}

/// The command, with the variables of these options only. Those of flags say 1 and 0, yes and no, on and off, or true
/// and false.
fn with_variables(command: Command, counts: fn(&Arg) -> bool) -> Command {
    let of_arg = move |arg: Arg| {
        let arg = if counts(&arg) { arg } else { arg.env(None) };
        if matches!(arg.get_action(), ArgAction::SetTrue) { arg.value_parser(BoolishValueParser::new()) } else { arg }
    };
    command.mut_args(of_arg).mut_subcommands(move |subcommand| subcommand.mut_args(of_arg))
}
