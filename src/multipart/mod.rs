//! Sans-I/O `multipart/form-data` (RFC 7578): the parts of a form with files, from a body that arrives in pieces.
//!
//! A [`Reader`] gets the bytes of the body in the order of their arrival and returns [`Event`]s. It holds no content,
//! only the header of the current part, so a file of any size takes no memory. It is strict: where parsers disagree,
//! for example about a bare LF or a repeated parameter, the body is rejected, so that a filter in front of the server
//! cannot see different parts.
//!
//! | file | idea |
//! |---|---|
//! | `reader` | the state machine that finds the boundaries |
//! | `part` | the header section of a part, and safe file names |
//! | `error` | limits and errors |
//!
//! # Examples
//! A sink (see [`BodySink`](crate::BodySink)) that counts the bytes of each file as they arrive:
//! ```
//! use serverd::multipart::{Event, Reader};
//! use serverd::{BodyFlow, BodyMode, BodySink, Handler, Request, RequestHead, Response, StatusCode, Trailers};
//!
//! struct Count {
//!     reader: Reader,
//!     bytes: u64,
//!     report: String,
//! }
//!
//! impl BodySink for Count {
//!     fn chunk(&mut self, bytes: &[u8]) -> BodyFlow {
//!         for event in self.reader.feed(bytes) {
//!             match event {
//!                 Ok(Event::Part(part)) => self.report += part.file_name().unwrap_or(part.name()),
//!                 Ok(Event::Data(data)) => self.bytes += data.len() as u64,
//!                 Ok(_) => self.report += &format!(": {} bytes\n", std::mem::take(&mut self.bytes)), // Event::End
//!                 Err(error) => return BodyFlow::Respond(error.into()),
//!             }
//!         }
//!         BodyFlow::Continue
//!     }
//!
//!     fn end(self: Box<Self>, _: &Trailers) -> Response {
//!         self.reader.finish().map(|()| Response::text(self.report)).into()
//!     }
//! }
//!
//! struct Uploads;
//!
//! impl Handler for Uploads {
//!     fn head(&mut self, head: &RequestHead<'_>) -> BodyMode {
//!         match head.multipart() {
//!             Ok(reader) => BodyMode::stream(1 << 30, Count { reader, bytes: 0, report: String::new() }),
//!             Err(error) => BodyMode::Reject(error.into()),
//!         }
//!     }
//!
//!     fn call(&mut self, _: &Request<'_>) -> Response {
//!         Response::error(StatusCode::BAD_REQUEST, "send a form\n")
//!     }
//! }
//! ```

mod error;
mod part;
mod reader;

pub use error::{Error, Limits};
pub use part::Part;
pub use reader::{Event, Events, Reader};
