//! The served directory as a capability: files are opened only through its handle.
//!
//! cap-std confines path resolution to the directory (openat2 with `RESOLVE_BENEATH` on Linux; elsewhere, and where a
//! seccomp filter blocks that call, component by component, each relative to the previous handle). Neither `..` nor a
//! symbolic link escapes the root, even if directories are replaced during the lookup. With `follow`, paths are
//! resolved by the operating system and symbolic links may lead anywhere; `..` is still rejected by `path`.
//!
//! The kernel refuses every absolute symbolic link, even one that leads to a place inside the directory. Such a link is
//! read, the path of the directory is removed from its target, and the rest is opened through the handle, so that the
//! kernel still confines the path to the directory. The absolute path itself is never opened.

use std::borrow::Borrow;
use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::path::{Component, Path, PathBuf};

use cap_std::ambient_authority;
use cap_std::fs::{Dir, Metadata};

use super::look_ups::timed;
use super::options::Options;

/// The name of the private key of a certificate authority, as `serverd cert` and other tools use it. No file with this name
/// is served: the authority may have been created by another user, or restored from a backup.
const AUTHORITY_KEY: &str = "ca-key.pem";

/// Maximum number of absolute symbolic links in the resolution of one path.
const ABSOLUTE_LINKS_MAX: usize = 8;

/// Maximum number of symbolic links in the resolution of one path; that of Linux.
const LINKS_MAX: usize = 40;

/// The kinds of file system object that are served.
pub(super) enum FileKind {
    File,
    Directory,
}

/// A served directory.
pub(super) struct Root {
    directory: Dir,
    id: FileId,
    /// The absolute path of the directory: as given, and with all symbolic links resolved.
    paths: [PathBuf; 2],
    follow: bool,
    hidden: bool,
    private: Vec<PathBuf>,
}

/// Identifies a file or directory: device and inode number, or the time of its creation on Windows.
type FileId = (u64, u64);

impl Root {
    /// Opens the directory at an absolute path.
    pub(super) fn open(path: &Path, options: &Options) -> io::Result<Self> {
        let directory = open_root(path)?;
        let id = file_id(&directory.dir_metadata()?);
        let paths = [path.to_owned(), path.canonicalize()?];
        let Options { follow_symlinks: follow, hidden, ref private, .. } = *options;
        Ok(Root { directory, id, paths, follow, hidden, private: private.clone() })
    }

    /// Returns whether both are the same directory at the same place.
    pub(super) fn is_same(&self, other: &Root) -> bool {
        self.id == other.id && self.paths == other.paths
    }

    /// Returns the name of the directory.
    pub(super) fn name(&self) -> &OsStr {
        self.paths[1].file_name().unwrap_or_default()
    }

    /// Returns the kind of a file, or a `NotFound` error if it is neither a regular file nor a directory.
    pub(super) fn kind(&self, relative: &Path) -> io::Result<FileKind> {
        let metadata = self.metadata(relative)?;
        if metadata.is_dir() {
            Ok(FileKind::Directory)
        } else if metadata.is_file() {
            Ok(FileKind::File)
        } else {
            Err(io::ErrorKind::NotFound.into())
        }
    }

    pub(super) fn metadata(&self, relative: &Path) -> io::Result<Metadata> {
        timed(|| self.metadata_untimed(relative))
    }

    fn metadata_untimed(&self, relative: &Path) -> io::Result<Metadata> {
        let relative = or_dot(relative);
        if !self.hidden && self.is_hidden(relative) {
            return Err(io::ErrorKind::NotFound.into());
        }
        let metadata = if self.follow {
            std::fs::metadata(self.paths[1].join(relative)).map(Metadata::from_just_metadata)?
        } else {
            self.beneath(relative, |path| self.directory.metadata(path))?
        };
        let is_private = self.is_private(relative, &metadata, || self.open_unchecked(relative))?;
        if is_private { Err(io::ErrorKind::NotFound.into()) } else { Ok(metadata) }
    }

    /// Calls `each` for every served entry of a directory, in no particular order.
    pub(super) fn read_dir(
        &self,
        relative: &Path,
        mut each: impl FnMut(&OsStr, &Metadata) -> io::Result<()>,
    ) -> io::Result<()> {
        let directory = if self.follow {
            Dir::open_ambient_dir(self.paths[1].join(relative), ambient_authority())?
        } else {
            self.beneath(or_dot(relative), |path| self.directory.open_dir(path))?
        };
        let mut is_empty = true;
        for entry in directory.entries()? {
            let entry = entry?;
            is_empty = false;
            let name = entry.file_name();
            if !self.hidden && name.as_encoded_bytes().starts_with(b".") {
                continue;
            }
            // Skip entries that have been removed since, and symbolic links that lead out of the root.
            let metadata = match entry.metadata() {
                Ok(metadata) if cfg!(not(windows)) && !metadata.is_symlink() => {
                    let open = || Ok(entry.open_with(&beneath_options())?.into_std());
                    if self.is_private(&relative.join(&name), &metadata, open).unwrap_or(true) {
                        continue;
                    }
                    metadata
                }
                Ok(_) => match self.metadata(&relative.join(&name)) {
                    Ok(metadata) => metadata,
                    Err(_) => continue,
                },
                Err(_) => continue,
            };
            if metadata.is_dir() || metadata.is_file() {
                each(&name, &metadata)?;
            }
        }
        // A directory that was removed reads as empty.
        let is_gone = is_empty && is_removed(&directory.dir_metadata()?);
        if is_gone { Err(io::ErrorKind::NotFound.into()) } else { Ok(()) }
    }

    /// Opens a regular file for reading. Opens without blocking, as opening a FIFO would wait for a writer.
    pub(super) fn open_file(&self, relative: &Path) -> io::Result<(File, Metadata)> {
        timed(|| self.open_file_untimed(relative))
    }

    fn open_file_untimed(&self, relative: &Path) -> io::Result<(File, Metadata)> {
        let file = self.open_unchecked(relative)?;
        // Check the open file rather than the path, which may refer to another file by now.
        let metadata = Metadata::from_file(&file)?;
        let is_served = metadata.is_file() && !self.is_private(relative, &metadata, || Ok(&file))?;
        if is_served { Ok((file, metadata)) } else { Err(io::ErrorKind::NotFound.into()) }
    }

    /// Opens a file, which may be private or no regular file.
    fn open_unchecked(&self, relative: &Path) -> io::Result<File> {
        if self.follow {
            return ambient_options().open(self.paths[1].join(relative));
        }
        let options = beneath_options();
        Ok(self.beneath(relative, |path| self.directory.open_with(path, &options))?.into_std())
    }

    /// Opens a path through the handle of the directory. If the kernel refuses it because of a symbolic link, resolves
    /// the links and tries again.
    fn beneath<T>(&self, relative: &Path, open: impl Fn(&Path) -> io::Result<T>) -> io::Result<T> {
        match open(relative) {
            Err(error) if is_escape(&error) => open(or_dot(&self.resolve_links(relative)?)),
            outcome => outcome,
        }
    }

    /// Resolves the symbolic links of a path, absolute ones included. Each step looks at a path whose parents have been
    /// resolved already; the kernel confines it to the directory like any other.
    fn resolve_links(&self, relative: &Path) -> io::Result<PathBuf> {
        let mut pending: VecDeque<OsString> = names(relative)?.collect();
        let (mut resolved, mut links, mut absolute_links) = (PathBuf::new(), 0, 0);
        while let Some(name) = pending.pop_front() {
            if name == ".." {
                if !resolved.pop() {
                    return Err(escape());
                }
                continue;
            }
            let path = resolved.join(&name);
            if !self.directory.symlink_metadata(&path)?.is_symlink() {
                resolved = path;
                continue;
            }
            let mut target = self.directory.read_link_contents(&path)?;
            links += 1;
            if target.is_absolute() || target.has_root() {
                let below = |root: &PathBuf| target.strip_prefix(root).map(Path::to_owned).ok();
                target = self.paths.iter().find_map(below).ok_or_else(escape)?;
                resolved.clear();
                absolute_links += 1;
            }
            if links > LINKS_MAX || absolute_links > ABSOLUTE_LINKS_MAX {
                return Err(escape());
            }
            for name in names(&target)?.collect::<Vec<_>>().into_iter().rev() {
                pending.push_front(name);
            }
        }
        Ok(resolved)
    }

    /// Returns whether a file must not be served: one of the private files, or a private key of TLS, for which `open` opens
    /// it if necessary.
    fn is_private<F: Borrow<File>>(
        &self,
        relative: &Path,
        metadata: &Metadata,
        open: impl FnOnce() -> io::Result<F>,
    ) -> io::Result<bool> {
        let is_authority_key = relative.file_name().is_some_and(|name| name.eq_ignore_ascii_case(AUTHORITY_KEY));
        Ok((is_authority_key && metadata.is_file())
            || self.is_listed_private(relative, metadata)
            || is_loaded_key(metadata, open)?)
    }

    /// Returns whether this is one of the private files: by its name, and, for links to it, by device and inode.
    fn is_listed_private(&self, relative: &Path, metadata: &Metadata) -> bool {
        self.private.iter().any(|private| {
            let is_named = self.paths.iter().any(|root| private.strip_prefix(root).is_ok_and(|path| path == relative));
            let same_file = |private| cfg!(unix) && metadata.is_file() && file_id(&private) == file_id(metadata);
            is_named || std::fs::metadata(private).map(Metadata::from_just_metadata).is_ok_and(same_file)
        })
    }

    /// Returns whether any component of the path has the hidden attribute.
    #[cfg(windows)]
    fn is_hidden(&self, relative: &Path) -> bool {
        use cap_std::fs::MetadataExt;
        const HIDDEN: u32 = 2;
        let names = relative.ancestors().filter(|name| !name.as_os_str().is_empty());
        names
            .map(|name| self.directory.symlink_metadata(name))
            .any(|metadata| metadata.is_ok_and(|metadata| metadata.file_attributes() & HIDDEN != 0))
    }

    /// Returns false: outside Windows only names that begin with a dot are hidden, and `path` rejects them.
    #[cfg(not(windows))]
    #[allow(clippy::unused_self, reason = "Windows reads attributes")]
    fn is_hidden(&self, _: &Path) -> bool {
        false
    }
}

/// Returns whether a file has the content of a private key that this process has read. It is opened only if it has the
/// length of one.
#[cfg(feature = "tls")]
fn is_loaded_key<F: Borrow<File>>(metadata: &Metadata, open: impl FnOnce() -> io::Result<F>) -> io::Result<bool> {
    if !metadata.is_file() || !crate::tls::may_be_loaded_key(metadata.len()) {
        return Ok(false);
    }
    let file = open()?;
    // At most 1 MiB, as that is the limit for files with keys.
    let mut content = vec![0; usize::try_from(metadata.len()).unwrap_or(0)];
    let mut filled = 0;
    while filled < content.len() {
        match crate::r#loop::read_at(file.borrow(), &mut content[filled..], filled as u64)? {
            0 => return Ok(false),
            read => filled += read,
        }
    }
    Ok(crate::tls::is_loaded_key(&content))
}

/// Returns false: no keys are read without TLS.
#[cfg(not(feature = "tls"))]
#[allow(clippy::unnecessary_wraps, reason = "fails with TLS")]
fn is_loaded_key<F>(_: &Metadata, _: impl FnOnce() -> io::Result<F>) -> io::Result<bool> {
    Ok(false)
}

/// Opens a handle of a directory, for which no permission to read it is needed. `Dir::open_ambient_dir` passes `O_PATH`
/// to the standard library, which drops the flag if the C library is musl.
#[cfg(target_os = "linux")]
fn open_root(path: &Path) -> io::Result<Dir> {
    use rustix::fs::{Mode, OFlags};
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let handle = rustix::io::retry_on_intr(|| rustix::fs::open(path, flags, Mode::empty()))?;
    Ok(Dir::from_std_file(handle.into()))
}

#[cfg(not(target_os = "linux"))]
fn open_root(path: &Path) -> io::Result<Dir> {
    Dir::open_ambient_dir(path, ambient_authority())
}

/// Returns the names in a relative path, including `..`.
fn names(path: &Path) -> io::Result<impl Iterator<Item = OsString>> {
    let is_relative = path.components().all(|part| !matches!(part, Component::Prefix(_) | Component::RootDir));
    if !is_relative {
        return Err(escape());
    }
    let parts = path.components().filter(|part| !matches!(part, Component::CurDir));
    Ok(parts.map(|part| part.as_os_str().to_owned()))
}

#[cfg(unix)]
fn file_id(metadata: &Metadata) -> FileId {
    use cap_std::fs::MetadataExt;
    (metadata.dev(), metadata.ino())
}

#[cfg(not(unix))]
fn file_id(metadata: &Metadata) -> FileId {
    let created = metadata.created().ok().map(cap_std::time::SystemTime::into_std);
    let since = created.and_then(|time| time.duration_since(std::time::UNIX_EPOCH).ok()).unwrap_or_default();
    (since.as_secs(), since.subsec_nanos().into())
}

/// Returns whether the last name of a file was removed.
#[cfg(unix)]
pub(super) fn is_removed(metadata: &Metadata) -> bool {
    cap_std::fs::MetadataExt::nlink(metadata) == 0
}

#[cfg(not(unix))]
pub(super) fn is_removed(_: &Metadata) -> bool {
    false
}

/// Returns `relative`, or `.` if it is empty, which denotes the root.
fn or_dot(relative: &Path) -> &Path {
    if relative.as_os_str().is_empty() { Path::new(".") } else { relative }
}

#[cfg(unix)]
const NONBLOCK: i32 = rustix::fs::OFlags::NONBLOCK.bits().cast_signed();

fn beneath_options() -> cap_std::fs::OpenOptions {
    let mut options = cap_std::fs::OpenOptions::new();
    options.read(true);
    #[cfg(unix)]
    cap_std::fs::OpenOptionsExt::custom_flags(&mut options, NONBLOCK);
    options
}

fn ambient_options() -> std::fs::OpenOptions {
    let mut options = std::fs::OpenOptions::new();
    options.read(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::custom_flags(&mut options, NONBLOCK);
    options
}

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
fn escape() -> io::Error {
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

#[cfg(all(test, feature = "cli"))]
mod tests {
    #[test]
    fn the_key_of_the_local_authority_has_the_name_that_is_not_served() {
        assert_eq!(super::AUTHORITY_KEY, crate::tls::AUTHORITY_KEY);
    }
}
