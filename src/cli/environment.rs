//! The environment beside the command line: which variables count, what they say to flags, and which one to blame.

use std::ffi::OsString;

use clap::builder::BoolishValueParser;
use clap::error::ErrorKind;
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
        _ => error,
    })
}

/// Whether the variable of an option is to be looked at.
fn counts(arg: &Arg) -> bool {
    let value = arg.get_env().and_then(std::env::var_os).unwrap_or_default();
    // Beside a service named serverd, Kubernetes and Docker's links set SERVERD_PORT=tcp://10.96.0.1:8888.
    !(arg.get_id() == "port" && value.to_string_lossy().contains("://"))
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
