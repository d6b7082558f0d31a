//! The served directory as a capability: files are opened only through its handle.
//!
//! cap-std confines path resolution to the directory (openat2 with `RESOLVE_BENEATH` on Linux; elsewhere, and where a
//! seccomp filter blocks that call, component by component, each relative to the previous handle). Neither `..` nor a
//! symbolic link escapes the root, even if directories are replaced during the lookup. With `follow`, paths are
//! resolved by the operating system and symbolic links may lead anywhere; `..` is still rejected by `path`.

use std::ffi::OsStr;
use std::io;
use std::path::{Path, PathBuf};

use cap_std::ambient_authority;
use cap_std::fs::{Dir, Metadata};

/// The kinds of file system object that are served.
pub(super) enum FileKind {
    File,
    Directory,
}

/// A served directory.
pub(super) struct Root {
    directory: Dir,
    /// The absolute path of the directory; set only if symbolic links may lead out of it.
    follow: Option<PathBuf>,
    hidden: bool,
}

impl Root {
    pub(super) fn open(path: &Path, follow: bool, hidden: bool) -> io::Result<Self> {
        let directory = Dir::open_ambient_dir(path, ambient_authority())?;
        let follow = if follow { Some(path.canonicalize()?) } else { None };
        Ok(Root { directory, follow, hidden })
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
        let relative = or_dot(relative);
        if !self.hidden && self.is_hidden(relative) {
            return Err(io::ErrorKind::NotFound.into());
        }
        match &self.follow {
            None => self.directory.metadata(relative),
            Some(root) => std::fs::metadata(root.join(relative)).map(Metadata::from_just_metadata),
        }
    }

    /// Calls `each` for every served entry of a directory, in no particular order.
    pub(super) fn read_dir(
        &self,
        relative: &Path,
        mut each: impl FnMut(&OsStr, &Metadata) -> io::Result<()>,
    ) -> io::Result<()> {
        let directory = match &self.follow {
            None => self.directory.open_dir(or_dot(relative))?,
            Some(root) => Dir::open_ambient_dir(root.join(relative), ambient_authority())?,
        };
        for entry in directory.entries()? {
            let entry = entry?;
            let name = entry.file_name();
            if !self.hidden && name.as_encoded_bytes().starts_with(b".") {
                continue;
            }
            // Skip entries that have been removed since, and symbolic links that lead out of the root.
            let metadata = match entry.metadata() {
                Ok(metadata) if cfg!(not(windows)) && !metadata.is_symlink() => metadata,
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
        Ok(())
    }

    /// Opens a regular file for reading. Opens without blocking, as opening a FIFO would wait for a writer.
    pub(super) fn open_file(&self, relative: &Path) -> io::Result<(std::fs::File, Metadata)> {
        let file = match &self.follow {
            None => self.directory.open_with(relative, &beneath_options())?.into_std(),
            Some(root) => ambient_options().open(root.join(relative))?,
        };
        // Check the open file rather than the path, which may refer to another file by now.
        let metadata = Metadata::from_file(&file)?;
        if metadata.is_file() { Ok((file, metadata)) } else { Err(io::ErrorKind::NotFound.into()) }
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
