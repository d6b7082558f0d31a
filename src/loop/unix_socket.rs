//! Listening Unix sockets, with their files.

use std::fs::{self, Metadata, Permissions};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use socket2::{Domain, SockAddr, Socket, Type};

/// Length of the accept queue until the loop sets its own.
const BACKLOG: i32 = 128;

/// Number of attempts to bind a path that other processes bind and remove at the same time.
const ATTEMPTS_MAX: usize = 4;

/// A listening Unix socket and its file. The file is removed when a graceful shutdown begins or the listener is closed,
/// unless another process has replaced it.
///
/// Pass it to [`EventLoop::listen`](super::EventLoop::listen) or [`Config::start_on`](crate::Config::start_on) like any
/// other listener. A `std::os::unix::net::UnixListener` can be passed too, such as one from socket activation; its file
/// is not removed.
///
/// # Examples
/// ```
/// use serverd::{Config, HttpServer, UnixSocket};
///
/// let directory = tempfile::tempdir()?;
/// let path = directory.path().join("hello.sock");
/// // The group may connect, as may a reverse proxy in it.
/// let socket = UnixSocket::bind(&path, 0o660)?;
/// let server = Config::default().start_on([socket], |_worker| HttpServer::new(|_| "hello\n"))?;
/// assert!(path.exists());
/// drop(server);
/// assert!(!path.exists());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct UnixSocket {
    listener: UnixListener,
    file: SocketFile,
}

/// The file of a listening socket; removed when this is dropped.
#[derive(Debug)]
pub(super) struct SocketFile {
    path: PathBuf,
    /// Device and inode.
    identity: (u64, u64),
}

impl UnixSocket {
    /// Binds a socket to a path and listens on it. The permissions of its file are `mode`, such as `0o660`, before a
    /// client can connect. On some systems, clients also need the permissions of the directories.
    ///
    /// The file of a server that has ended without removing it is replaced.
    ///
    /// # Errors
    /// Returns `AddrInUse` if another process listens on the path, `AlreadyExists` if it is not a socket,
    /// `InvalidInput` if it is too long (about 100 bytes, depending on the system), and the error of the system if the
    /// file cannot be created or replaced.
    pub fn bind(path: impl AsRef<Path>, mode: u32) -> io::Result<Self> {
        let path = path.as_ref();
        let address = SockAddr::unix(path)?;
        let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
        for _ in 1..ATTEMPTS_MAX {
            match socket.bind(&address) {
                Ok(()) => return Self::listen(socket, path, mode),
                Err(error) if error.kind() == io::ErrorKind::AddrInUse => remove_stale(path, &address)?,
                Err(error) => return Err(error),
            }
        }
        socket.bind(&address)?;
        Self::listen(socket, path, mode)
    }

    /// Listens on a bound socket. It refuses connections before that, so that none is accepted with other permissions.
    fn listen(socket: Socket, path: &Path, mode: u32) -> io::Result<Self> {
        // Removed if a call below fails.
        let file = SocketFile { path: std::path::absolute(path)?, identity: identity(&fs::symlink_metadata(path)?) };
        fs::set_permissions(path, Permissions::from_mode(mode))?;
        socket.listen(BACKLOG)?;
        Ok(UnixSocket { listener: OwnedFd::from(socket).into(), file })
    }

    /// Returns the absolute path of the socket.
    pub fn path(&self) -> &Path {
        &self.file.path
    }

    pub(super) fn into_parts(self) -> (UnixListener, SocketFile) {
        (self.listener, self.file)
    }
}

fn identity(metadata: &Metadata) -> (u64, u64) {
    (metadata.dev(), metadata.ino())
}

/// Removes the file of a socket on which no process listens.
fn remove_stale(path: &Path, address: &SockAddr) -> io::Result<()> {
    let found = match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        found => found?,
    };
    // Otherwise a connect would be refused as well.
    if !found.file_type().is_socket() {
        return Err(io::Error::new(io::ErrorKind::AlreadyExists, "the file exists and is not a socket"));
    }
    let probe = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    probe.set_nonblocking(true)?;
    match probe.connect(address) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => remove(path, identity(&found)),
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Err(error),
        // It accepts, its queue is full, or it is a socket for datagrams.
        _ => Err(io::Error::new(io::ErrorKind::AddrInUse, "another process listens on the socket")),
    }
}

/// Removes a file, unless it was replaced.
fn remove(path: &Path, known: (u64, u64)) -> io::Result<()> {
    match fs::symlink_metadata(path) {
        Ok(found) if identity(&found) == known => fs::remove_file(path),
        _ => Ok(()),
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if let Err(error) = remove(&self.path, self.identity) {
            log::warn!("cannot remove the socket {}: {error}", self.path.display());
        }
    }
}
