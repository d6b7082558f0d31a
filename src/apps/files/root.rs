//! The directory that is served, as a handle: nothing is ever opened but through it.
//!
//! cap-std has the kernel keep a name below the directory while it is looked up (openat2 with `RESOLVE_BENEATH` on
//! Linux; elsewhere, and where a filter refuses that call, name by name, each through the handle of the one before). So
//! neither a name nor a symbolic link leads out, also when somebody exchanges directories meanwhile. With
//! `follow` names are looked up as the system does, and links may lead anywhere; names may not, as `path` sees to that.

use std::ffi::OsStr;
use std::io;
use std::path::{Path, PathBuf};

use cap_std::ambient_authority;
use cap_std::fs::{Dir, Metadata};

/// What is there under a name.
pub(super) enum Found {
    File,
    Directory,
}

/// A directory.
pub(super) struct Root {
    directory: Dir,
    /// Where it is, if links may lead out of it.
    follow: Option<PathBuf>,
    hidden: bool,
}

impl Root {
    pub(super) fn open(path: &Path, follow: bool, hidden: bool) -> io::Result<Self> {
        let directory = Dir::open_ambient_dir(path, ambient_authority())?;
        let follow = if follow { Some(path.canonicalize()?) } else { None };
        Ok(Root { directory, follow, hidden })
    }

    /// What is there; not found is also what is neither a file nor a directory.
    pub(super) fn find(&self, relative: &Path) -> io::Result<Found> {
        let metadata = self.metadata(relative)?;
        if metadata.is_dir() {
            Ok(Found::Directory)
        } else if metadata.is_file() {
            Ok(Found::File)
        } else {
            Err(io::ErrorKind::NotFound.into())
        }
    }

    pub(super) fn metadata(&self, relative: &Path) -> io::Result<Metadata> {
        let relative = below(relative);
        if !self.hidden && self.is_hidden(relative) {
            return Err(io::ErrorKind::NotFound.into());
        }
        match &self.follow {
            None => self.directory.metadata(relative),
            Some(root) => std::fs::metadata(root.join(relative)).map(Metadata::from_just_metadata),
        }
    }

    /// Goes through what is served of a directory, in no order.
    pub(super) fn list(
        &self,
        relative: &Path,
        mut each: impl FnMut(&OsStr, &Metadata) -> io::Result<()>,
    ) -> io::Result<()> {
        let directory = match &self.follow {
            None => self.directory.open_dir(below(relative))?,
            Some(root) => Dir::open_ambient_dir(root.join(relative), ambient_authority())?,
        };
        for entry in directory.entries()? {
            let entry = entry?;
            let name = entry.file_name();
            if !self.hidden && name.as_encoded_bytes().starts_with(b".") {
                continue;
            }
            // What has gone meanwhile, and what leads out, is not there.
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

    /// Opens a regular file for reading, and nothing else. Never waits: a FIFO would, for its other end.
    pub(super) fn file(&self, relative: &Path) -> io::Result<(std::fs::File, Metadata)> {
        let file = match &self.follow {
            None => self.directory.open_with(relative, &beneath())?.into_std(),
            Some(root) => anywhere().open(root.join(relative))?,
        };
        // The name may stand for something else by now; what is open does not change any more.
        let metadata = Metadata::from_file(&file)?;
        if metadata.is_file() { Ok((file, metadata)) } else { Err(io::ErrorKind::NotFound.into()) }
    }

    /// Whether one of the names has the attribute.
    #[cfg(windows)]
    fn is_hidden(&self, relative: &Path) -> bool {
        use cap_std::fs::MetadataExt;
        const HIDDEN: u32 = 2;
        let names = relative.ancestors().filter(|name| !name.as_os_str().is_empty());
        names
            .map(|name| self.directory.symlink_metadata(name))
            .any(|metadata| metadata.is_ok_and(|metadata| metadata.file_attributes() & HIDDEN != 0))
    }

    /// Names that begin with a dot are the only hidden ones.
    #[cfg(not(windows))]
    #[allow(clippy::unused_self, reason = "elsewhere the directory is asked")]
    fn is_hidden(&self, _: &Path) -> bool {
        false
    }
}

/// The root has no name below itself.
fn below(relative: &Path) -> &Path {
    if relative.as_os_str().is_empty() { Path::new(".") } else { relative }
}

#[cfg(unix)]
const NONBLOCK: i32 = rustix::fs::OFlags::NONBLOCK.bits().cast_signed();

fn beneath() -> cap_std::fs::OpenOptions {
    let mut options = cap_std::fs::OpenOptions::new();
    options.read(true);
    #[cfg(unix)]
    cap_std::fs::OpenOptionsExt::custom_flags(&mut options, NONBLOCK);
    options
}

fn anywhere() -> std::fs::OpenOptions {
    let mut options = std::fs::OpenOptions::new();
    options.read(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::custom_flags(&mut options, NONBLOCK);
    options
}
