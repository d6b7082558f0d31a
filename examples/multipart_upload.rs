//! Uploads from a web page: saves the files of a form while they arrive, however large they are.
//!
//!     cargo run --example multipart_upload -- 127.0.0.1:8888 /tmp/uploads
//!     curl -F file=@README.md -F file=@CHANGELOG.md http://127.0.0.1:8888/     # or open it in a browser
//!
//! The files are written on a thread pool. Until a piece is written, the server reads no more from the client, so that a
//! slow disk slows the client down. Files of uploads that fail are removed.

use std::io::{Error, ErrorKind, Write as _};
use std::net::TcpListener;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use serverd::multipart::{Event, Limits, Reader};
use serverd::{
    BodyFlow, BodyMode, BodySink, DefaultLoop, Handler, HttpServer, Pool, PoolFull, Request, RequestHead, Response,
    Resume, StatusCode, Trailers,
};
use tempfile::NamedTempFile;

const UPLOAD_BYTES_MAX: u64 = 4 << 30;

const PAGE: &str = r#"<!doctype html><html lang="en"><title>Upload</title>
<form method="post" enctype="multipart/form-data">
  <input type="file" name="file" multiple required> <button>Upload</button>
</form>"#;

struct Files {
    directory: PathBuf,
    /// The current file, which is removed unless it is complete, and its name.
    file: Option<(NamedTempFile, String)>,
    report: Vec<String>,
}

impl Files {
    fn save(&mut self, event: Event<'_>) -> std::io::Result<()> {
        match (event, self.file.take()) {
            (Event::Part(part), _) => {
                if let Some(name) = part.file_name() {
                    self.file = Some((NamedTempFile::new_in(&self.directory)?, name.to_owned()));
                }
            }
            (Event::Data(data), Some((mut file, name))) => {
                file.write_all(data)?;
                self.file = Some((file, name));
            }
            (Event::End, Some((file, name))) => {
                let file = file.persist_noclobber(self.directory.join(&name))?;
                self.report.push(format!("{name}: {} bytes\n", file.metadata()?.len()));
            }
            _ => {}
        }
        Ok(())
    }
}

fn refuse(error: &Error) -> Response {
    match error.kind() {
        ErrorKind::AlreadyExists => Response::error(StatusCode::CONFLICT, "there is a file with this name\n"),
        _ => Response::error(StatusCode::INSUFFICIENT_STORAGE, "cannot save the file\n"),
    }
}

/// A form, which is read and saved on a thread of the pool, a chunk at a time.
struct Upload {
    form: Arc<Mutex<(Reader, Files)>>,
    pool: Pool,
}

fn save_chunk(form: &Mutex<(Reader, Files)>, bytes: &[u8]) -> Result<(), Response> {
    let (reader, files) = &mut *form.lock().unwrap_or_else(PoisonError::into_inner);
    reader.feed(bytes).try_for_each(|event| files.save(event?).map_err(|error| refuse(&error)))
}

impl BodySink for Upload {
    fn chunk(&mut self, bytes: &[u8]) -> BodyFlow {
        let (flow, resume) = BodyFlow::wait();
        let (form, bytes) = (Arc::clone(&self.form), bytes.to_vec());
        let queued = self.pool.run_with(resume, move |resume: Resume| match save_chunk(&form, &bytes) {
            Ok(()) => resume.resume(),
            Err(response) => resume.respond(response),
        });
        if let Err(PoolFull((resume, _))) = queued {
            resume.respond(PoolFull(())); // 503 (Service Unavailable)
        }
        flow
    }

    fn end(self: Box<Self>, _: &Trailers) -> Response {
        let (reader, files) = &mut *self.form.lock().unwrap_or_else(PoisonError::into_inner);
        reader.finish().map(|()| Response::text(files.report.concat())).into()
    }
}

struct Uploads(PathBuf, Pool);

impl Handler for Uploads {
    fn head(&mut self, head: &RequestHead<'_>) -> BodyMode {
        let limits = Limits::default().bytes_max(UPLOAD_BYTES_MAX).file_bytes_max(UPLOAD_BYTES_MAX);
        let files = Files { directory: self.0.clone(), file: None, report: Vec::new() };
        match head.multipart().map(|reader| Arc::new(Mutex::new((reader.limits(limits), files)))) {
            Ok(form) => BodyMode::stream(UPLOAD_BYTES_MAX, Upload { form, pool: self.1.clone() }),
            Err(error) => BodyMode::Reject(error.into()),
        }
    }

    fn call(&mut self, _: &Request<'_>) -> Response {
        Response::new(StatusCode::OK).content_type("text/html; charset=utf-8").body(PAGE)
    }
}

fn main() -> std::io::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let listener = TcpListener::bind(arguments.next().unwrap_or_else(|| "127.0.0.1:8888".into()))?;
    let directory = PathBuf::from(arguments.next().unwrap_or_else(|| "uploads".into()));
    std::fs::create_dir_all(&directory)?;
    println!("listening on http://{}", listener.local_addr()?);
    DefaultLoop::new(listener, None, HttpServer::with(Uploads(directory, Pool::new(4, 64)?)))?.run()
}
