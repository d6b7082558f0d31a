//! `serverd files`: a static file server.
//!
//! ```text
//! options.rs          Options, CacheControl
//! handler.rs          Files: request -> cached file, listing, redirect or error
//!   path.rs             request path -> file, directory or redirect
//!   cache.rs            LRU cache: request path -> file; its metrics
//!   fallback.rs         error -> page of the single-page app, the site's own error page, or a built-in one
//! site.rs             the directory over time: reopens it when it is replaced, closes idle files
//!   root.rs             relative path -> open file; confines every lookup to the root
//! look_ups.rs         look-ups on the loop's thread, or on a pool while the file system is slow; requests that wait for them
//! cached_file.rs      open file -> response
//!   representation.rs   precompressed siblings (.br, .zst, .gz), Content-Type
//!   conditions.rs       ETag, Last-Modified, If-Match, If-None-Match ..., Range
//! listing/            directory listings
//! ```

mod cache;
mod cached_file;
mod conditions;
mod fallback;
mod handler;
mod listing;
mod look_ups;
mod options;
mod path;
mod representation;
mod root;
mod site;

#[cfg(feature = "cli")]
pub(crate) use self::cache::CacheMetrics;
#[cfg(feature = "cli")]
pub(crate) use self::handler::CountedFiles;
pub use self::handler::Files;
pub use self::options::{CacheControl, Options};
#[cfg(feature = "cli")]
pub(crate) use self::representation::is_media_type;
