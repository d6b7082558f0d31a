//! Advice about errors of a server at its start, which names options of the command line.

use std::error::Error;
use std::io;

use crate::server::{StartError, StartErrorKind};

/// Returns the sentence for an error, with advice if there is any.
pub fn with_advice(error: &StartError) -> String {
    let advice = match error.kind() {
        StartErrorKind::Host => "set --host to an address of this machine",
        StartErrorKind::Listen(_) => match error.source().and_then(|source| source.downcast_ref::<io::Error>()) {
            Some(source) => listen_advice(source),
            None => return error.to_string(),
        },
        StartErrorKind::Backend => "use --backend select or omit the option",
        StartErrorKind::Balance => "use --balance least-connections or omit the option",
        _ => return error.to_string(),
    };
    format!("{error}; {advice}")
}

fn listen_advice(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::AddrInUse => "stop the process using it or choose another with --port",
        io::ErrorKind::PermissionDenied => "choose a port above 1023 with --port",
        io::ErrorKind::AddrNotAvailable => "choose another with --host",
        _ => "choose another with --host or --port",
    }
}
