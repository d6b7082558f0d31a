//! Limits on the parts of a form, and the errors for which a body is rejected, each with the status code of its
//! response.

use std::fmt;

use http::StatusCode;

/// Limits on the parts of a form. A form that exceeds one of them gets 413.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Limits {
    /// Maximum size of the whole body in bytes. Default: 64 MiB.
    pub bytes_max: u64,
    /// Maximum size of a file in bytes. Default: 32 MiB.
    pub file_bytes_max: u64,
    /// Maximum size of a part without a file name in bytes. Such parts are usually collected in memory. Default: 1 MiB.
    pub text_bytes_max: u64,
    /// Maximum number of parts. Default: 1,000, as in Go.
    pub parts_max: usize,
    /// Maximum size of the header section of a part in bytes; it is held in memory. Default: 8 KiB.
    pub header_bytes_max: usize,
    /// Maximum number of headers of a part. Default: 32; browsers send 2.
    pub headers_max: usize,
}

impl Limits {
    setters! {
        bytes_max: u64,
        file_bytes_max: u64,
        text_bytes_max: u64,
        parts_max: usize,
        header_bytes_max: usize,
        headers_max: usize,
    }
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            bytes_max: 64 << 20,
            file_bytes_max: 32 << 20,
            text_bytes_max: 1 << 20,
            parts_max: 1000,
            header_bytes_max: 8 * 1024,
            headers_max: 32,
        }
    }
}

/// An error in a form. Converts into a response with a one-line explanation, which contains nothing the client sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Error {
    /// The Content-Type is missing or not `multipart/form-data` (415).
    NotMultipart,
    /// The parameter `boundary` is missing, repeated or malformed (400).
    Boundary,
    /// A boundary is followed by something other than a line ending or `--` (400).
    Delimiter,
    /// The header section of a part is malformed (400).
    Header,
    /// The Content-Disposition of a part is missing or malformed, or does not name the part (400).
    Disposition,
    /// A name is not UTF-8 (400).
    NotUtf8,
    /// A part has a Content-Transfer-Encoding such as base64, which RFC 7578 section 4.7 deprecates (400).
    TransferEncoding,
    /// The body ends before the last boundary (400).
    Incomplete,
    /// See [`Limits::bytes_max`].
    TooLarge,
    /// See [`Limits::file_bytes_max`].
    FileTooLarge,
    /// See [`Limits::text_bytes_max`].
    TextTooLarge,
    /// See [`Limits::parts_max`].
    TooManyParts,
    /// See [`Limits::header_bytes_max`] and [`Limits::headers_max`].
    HeaderTooLarge,
}

impl Error {
    /// Returns the status code of the response to this error.
    pub fn status(self) -> StatusCode {
        match self {
            Error::NotMultipart => StatusCode::UNSUPPORTED_MEDIA_TYPE,
            Error::TooLarge
            | Error::FileTooLarge
            | Error::TextTooLarge
            | Error::TooManyParts
            | Error::HeaderTooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            _ => StatusCode::BAD_REQUEST,
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Error::NotMultipart => "expected a body of type multipart/form-data",
            Error::Boundary => "the boundary of the form is missing or malformed",
            Error::Delimiter => "a boundary in the form is followed by other characters",
            Error::Header => "a header in the form is malformed",
            Error::Disposition => "a part of the form has no name, or its Content-Disposition is malformed",
            Error::NotUtf8 => "a name in the form is not UTF-8",
            Error::TransferEncoding => "a part of the form has a transfer encoding, which is not supported",
            Error::Incomplete => "the form ends before its last boundary",
            Error::TooLarge => "the form is too large",
            Error::FileTooLarge => "a file is too large",
            Error::TextTooLarge => "a field of the form is too large",
            Error::TooManyParts => "the form has too many parts",
            Error::HeaderTooLarge => "a header in the form is too large",
        })
    }
}

impl std::error::Error for Error {}
