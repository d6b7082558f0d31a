//! `serverd files`: a static file server.
//!
//! ```text
//! options.rs          Options, CacheControl
//! handler.rs          Files: request -> cached file, listing, redirect or error
//!   path.rs             request path -> path relative to the root
//!   cache.rs            LRU cache: request path -> file
//! site.rs             the directory over time: reopens it when it is replaced, closes idle files
//!   root.rs             relative path -> open file; confines every lookup to the root
//! cached_file.rs      open file -> response
//!   validators.rs       ETag, Last-Modified and preconditions (If-Match, If-None-Match ...)
//!   media.rs            Content-Type
//!   ranges.rs           Range, and several ranges in one response
//!   precompressed.rs    precompressed siblings (.br, .zst, .gz)
//! listing/            directory listings
//! errors.rs           I/O error -> status and error page
//! ```

mod cache;
mod cached_file;
mod errors;
mod handler;
mod listing;
mod media;
mod options;
mod path;
mod precompressed;
mod ranges;
mod root;
mod site;
mod validators;

pub use self::handler::Files;
#[cfg(feature = "cli")]
pub(crate) use self::media::is_media_type;
pub use self::options::{CacheControl, Options};
