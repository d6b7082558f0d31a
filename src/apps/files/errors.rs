//! I/O errors as HTTP responses: the status, and a built-in page for browsers.

use std::fmt::Write as _;
use std::io;
use std::sync::LazyLock;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::StatusCode;
use sha2::{Digest, Sha256};

use crate::httpserver::{RequestHead, Response};

/// Returns whether an error means that the file does not exist, or must appear not to exist.
pub(super) fn is_not_found(error: &io::Error) -> bool {
    use io::ErrorKind::{InvalidFilename, InvalidInput, IsADirectory, NotADirectory, NotFound};
    // EINVAL from cap-std, where it resolves symlinks itself, means that one was replaced by a file or directory during
    // the lookup.
    matches!(error.kind(), NotFound | NotADirectory | IsADirectory | InvalidFilename | InvalidInput)
        || is_escape(error)
        || is_loop(error)
}

/// Returns whether a symbolic link was refused because it leads out of the directory. Such an error comes from cap-std
/// or from [`escape`], so it has no errno; a symlink loop is rejected by the kernel.
pub(super) fn is_escape(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::PermissionDenied && error.raw_os_error().is_none()
}

/// Creates the error for a symbolic link that leads out of the directory.
pub(super) fn escape() -> io::Error {
    io::Error::new(io::ErrorKind::PermissionDenied, "a symbolic link leads out of the directory")
}

#[cfg(unix)]
fn is_loop(error: &io::Error) -> bool {
    error.raw_os_error() == Some(rustix::io::Errno::LOOP.raw_os_error())
}

#[cfg(not(unix))]
fn is_loop(_: &io::Error) -> bool {
    false
}

/// Returns whether an error means that the process or the system is out of file descriptors.
#[cfg(unix)]
pub(super) fn is_out_of_fds(error: &io::Error) -> bool {
    use rustix::io::Errno;
    [Errno::MFILE, Errno::NFILE].iter().any(|errno| error.raw_os_error() == Some(errno.raw_os_error()))
}

#[cfg(not(unix))]
pub(super) fn is_out_of_fds(_: &io::Error) -> bool {
    false
}

/// Returns the status code for an I/O error.
pub(super) fn status_for(error: &io::Error) -> StatusCode {
    match error.kind() {
        _ if is_not_found(error) => StatusCode::NOT_FOUND,
        io::ErrorKind::PermissionDenied => StatusCode::FORBIDDEN,
        io::ErrorKind::ResourceBusy => StatusCode::SERVICE_UNAVAILABLE,
        _ if is_out_of_fds(error) => StatusCode::SERVICE_UNAVAILABLE,
        _ => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

/// Returns whether the client is a browser that will show the response as a page.
pub(super) fn wants_page(head: &RequestHead<'_>) -> bool {
    head.names_media_type("text/html")
}

/// Logs an error that is the server's own, and responds with its status.
pub(super) fn error_response(path: &str, error: &io::Error, page: bool) -> Response {
    let status = status_for(error);
    if status == StatusCode::INTERNAL_SERVER_ERROR || is_out_of_fds(error) {
        log::error!("cannot read {path}: {error}");
    }
    status_response(status, page)
}

/// Responds with an error: as a page, or as a line of text.
pub(super) fn status_response(status: StatusCode, page: bool) -> Response {
    let response = if page { error_page(status) } else { status.into() };
    if status == StatusCode::SERVICE_UNAVAILABLE { response.header("Retry-After", "1") } else { response }
}

const STYLE: &str = "\
:root{color-scheme:light dark}\
body{margin:0;min-height:100vh;display:grid;place-content:center;text-align:center;padding:1.5rem;\
box-sizing:border-box;background:#f6f7f9;color:#1d232b;\
font:16px/1.5 system-ui,-apple-system,\"Segoe UI\",Roboto,\"Noto Sans\",sans-serif}\
b{font-size:4rem;line-height:1;color:#66707d}h1{margin:.5rem 0;font-size:1.35rem}p{margin:0;color:#66707d}\
@media(prefers-color-scheme:dark){body{background:#12151a;color:#e3e7ed}b,p{color:#939eac}}";

/// The Content-Security-Policy of an error page: nothing but its own style sheet.
static POLICY: LazyLock<String> = LazyLock::new(|| {
    let hash = STANDARD.encode(Sha256::digest(STYLE));
    format!("default-src 'none'; style-src 'sha256-{hash}'; base-uri 'none'; form-action 'none'")
});

fn error_page(status: StatusCode) -> Response {
    let reason = status.canonical_reason().unwrap_or("Error");
    let advice = match status {
        StatusCode::NOT_FOUND => "There is no page at this address.",
        StatusCode::FORBIDDEN => "The server is not allowed to read this file.",
        StatusCode::SERVICE_UNAVAILABLE => "The page is not available at the moment. Please try again shortly.",
        _ => "The server could not read this file.",
    };
    let mut page = String::from("<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n");
    page.push_str("<meta name=\"viewport\" content=\"width=device-width,initial-scale=1\">\n");
    let _ = write!(page, "<title>{reason}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<main>");
    let _ = write!(page, "<b>{}</b><h1>{reason}</h1><p>{advice}</p></main>\n</body>\n</html>\n", status.as_u16());
    let response = Response::new(status).content_type("text/html; charset=utf-8").body(page);
    response.header("Content-Security-Policy", POLICY.as_str()).header("X-Content-Type-Options", "nosniff")
}
