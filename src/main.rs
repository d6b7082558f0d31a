//! The `serverd` binary: parses the command line, starts the logger, runs the command, and turns an error into a
//! one-line message and an exit code.

use std::error::Error;
use std::io;
use std::process::ExitCode;

use serverd::client::console::Output;
use serverd::{cli, server};

fn main() -> ExitCode {
    let options = cli::parse();
    start_logger(&options);
    match run(&options.task) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("serverd: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(task: &cli::Task) -> Result<(), Box<dyn Error>> {
    match task {
        cli::Task::Serve(config, command, logging) => server::run(config, command, logging)?,
        cli::Task::Check(check) => {
            check.run(&mut Output::stdout()).map_err(|error| format!("{}: {error}", check.target))?;
        }
        cli::Task::Hash(hash) => hash.run(&mut io::stdout().lock())?,
        cli::Task::Connect(connect) => {
            let outcome = connect.run(io::stdin(), &mut Output::stdout());
            outcome.map_err(|error| format!("{}: {error}", connect.authority))?;
        }
    }
    Ok(())
}

/// Starts the logger. `RUST_LOG` overrides the verbosity flags, because it can select individual modules.
fn start_logger(options: &cli::Options) {
    let write_style = match options.color {
        cli::Color::Auto => env_logger::WriteStyle::Auto,
        cli::Color::Always => env_logger::WriteStyle::Always,
        cli::Color::Never => env_logger::WriteStyle::Never,
    };
    env_logger::Builder::new().filter_level(options.log_level).parse_default_env().write_style(write_style).init();
}
