//! The `serverd` binary: parses the command line, starts the logger, runs the command, and turns an error into a
//! one-line message and an exit code.

use std::error::Error;
use std::process::ExitCode;

use serverd::cli::{self, Color, Options, Task};
use serverd::server::{self, ProcessLog};

fn main() -> ExitCode {
    let options = cli::parse();
    let color = match options.color {
        Color::Auto => None,
        Color::Always => Some(true),
        Color::Never => Some(false),
    };
    let log = match ProcessLog::start(options.log_level, color) {
        Ok(log) => log,
        Err(error) => {
            eprintln!("serverd: cannot start logging: {error}");
            return ExitCode::FAILURE;
        }
    };
    warn_of_unknown_variables(&options);
    let outcome = run(&options.task, &log);
    if let Err(error) = &outcome {
        log.print(&format!("serverd: {error}"));
    }
    if outcome.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn run(task: &Task, log: &ProcessLog) -> Result<(), Box<dyn Error>> {
    match task {
        Task::Serve(config, command, logging) => {
            server::run(config, command, logging, log).map_err(|error| cli::with_advice(&error).into())
        }
        Task::Client(command) => command.run(),
    }
}

fn warn_of_unknown_variables(options: &Options) {
    if !options.unknown_variables.is_empty() {
        let names = options.unknown_variables.join(", ");
        log::warn!("ignoring unknown environment variables: {names}; serverd --help lists the known ones");
    }
}
