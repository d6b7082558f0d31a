//! Advice about errors of a server at its start, which names options of the command line.

use std::error::Error;
use std::io;

use crate::server::{StartError, StartErrorKind};

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
