//! Waits for changes of files. Linux reports them by inotify. Elsewhere, and on network file systems, which report
//! nothing, they are found when the time limit of a wait is over.

#[cfg(target_os = "linux")]
pub(super) use linux::FileWatch;
#[cfg(not(target_os = "linux"))]
pub(super) use others::FileWatch;

/// Why a wait has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wake {
    /// A directory of the files has changed, or the time limit is over.
    Check,
    /// [`Waker::wake`] was called.
    Requested,
    /// The [`Waker`] was dropped.
    Ended,
}

#[cfg(target_os = "linux")]
mod linux {
    use std::collections::BTreeSet;
    use std::io::{self, PipeReader, PipeWriter, Read, Write};
    use std::os::fd::OwnedFd;
    use std::path::{Path, PathBuf};
    use std::time::Duration;

    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    use rustix::fs::inotify::{self, CreateFlags, WatchFlags};

    use super::Wake;

    /// Time without another change after which a change is reported, since a certificate and its key are two files.
    const SETTLE_TIME: Duration = Duration::from_millis(500);

    /// Maximum number of changes that one report waits for, if other files in the directory keep changing.
    const SETTLE_MAX: u32 = 10;

    /// Waits for changes in the directories of files. A file that is a symbolic link is reported when the link is replaced,
    /// or a link beside it, as with secrets that Kubernetes mounts.
    pub(in super::super) struct FileWatch {
        directories: BTreeSet<PathBuf>,
        /// `None` if the user already has the maximum number of instances.
        inotify: Option<OwnedFd>,
        requests: PipeReader,
    }

    /// Ends a wait.
    pub(in super::super) struct Waker(PipeWriter);

    impl Waker {
        pub(in super::super) fn wake(&self) {
            // A full pipe or a thread that has ended need no further request.
            let _ = (&self.0).write(&[0]);
        }
    }

    impl FileWatch {
        /// Starts to watch the directories of these files.
        pub(in super::super) fn new<'a>(files: impl IntoIterator<Item = &'a Path>) -> io::Result<(Self, Waker)> {
            let directory = |file: &Path| Some(std::path::absolute(file).ok()?.parent()?.to_owned());
            let directories = files.into_iter().filter_map(directory).collect();
            let inotify = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)
                .inspect_err(|error| log::debug!("cannot watch files: {error}"))
                .ok();
            let (requests, waker) = io::pipe()?;
            let watch = FileWatch { directories, inotify, requests };
            watch.watch_directories();
            Ok((watch, Waker(waker)))
        }

        /// Watches the directories, which may have been created or replaced since the last call.
        fn watch_directories(&self) {
            let flags = WatchFlags::CLOSE_WRITE | WatchFlags::CREATE | WatchFlags::MOVED_TO | WatchFlags::ONLYDIR;
            for (inotify, directory) in
                self.inotify.iter().flat_map(|fd| self.directories.iter().map(move |path| (fd, path)))
            {
                if let Err(error) = inotify::add_watch(inotify, directory.as_path(), flags) {
                    log::debug!("cannot watch {}: {error}", directory.display());
                }
            }
        }

        /// Waits for a change, a request, or the end of `limit`.
        pub(in super::super) fn wait(&mut self, limit: Duration) -> Wake {
            self.watch_directories();
            let mut limit = limit;
            for _ in 0..SETTLE_MAX {
                match self.wait_once(limit) {
                    Some(Wake::Check) => limit = SETTLE_TIME,
                    Some(wake) => return wake,
                    None => break,
                }
            }
            Wake::Check
        }

        /// Waits once; returns `None` if `limit` is over.
        fn wait_once(&mut self, limit: Duration) -> Option<Wake> {
            let requests = PollFd::new(&self.requests, PollFlags::IN);
            let changes = self.inotify.as_ref().map(|inotify| PollFd::new(inotify, PollFlags::IN));
            let mut fds: Vec<PollFd<'_>> = [requests].into_iter().chain(changes).collect();
            let limit = Timespec::try_from(limit).ok();
            // An interrupted wait is followed by a check that finds nothing.
            let _ = poll(&mut fds, limit.as_ref());
            let [is_requested, is_changed] =
                [0, 1].map(|index| fds.get(index).is_some_and(|fd| !fd.revents().is_empty()));
            drop(fds);
            if is_requested {
                let count = self.requests.read(&mut [0; 64]).unwrap_or(0);
                return Some(if count > 0 { Wake::Requested } else { Wake::Ended });
            }
            if is_changed && let Some(inotify) = &self.inotify {
                let mut events = [0; 4096];
                while rustix::io::read(inotify, &mut events).is_ok_and(|count| count > 0) {}
            }
            is_changed.then_some(Wake::Check)
        }
    }
}

#[cfg(not(target_os = "linux"))]
mod others {
    use std::io;
    use std::path::Path;
    use std::sync::mpsc::{self, Receiver, RecvTimeoutError, SyncSender};
    use std::time::Duration;

    use super::Wake;

    /// Waits until files may have changed: for a request or the end of a time limit.
    pub(in super::super) struct FileWatch(Receiver<()>);

    /// Ends a wait.
    pub(in super::super) struct Waker(SyncSender<()>);

    impl Waker {
        pub(in super::super) fn wake(&self) {
            // A request that is pending already and a thread that has ended need no further one.
            let _ = self.0.try_send(());
        }
    }

    impl FileWatch {
        #[allow(clippy::unnecessary_wraps, reason = "can fail on Linux")]
        pub(in super::super) fn new<'a>(_: impl IntoIterator<Item = &'a Path>) -> io::Result<(Self, Waker)> {
            let (sender, receiver) = mpsc::sync_channel(1);
            Ok((FileWatch(receiver), Waker(sender)))
        }

        /// Waits for a request or the end of `limit`.
        pub(in super::super) fn wait(&mut self, limit: Duration) -> Wake {
            match self.0.recv_timeout(limit) {
                Ok(()) => Wake::Requested,
                Err(RecvTimeoutError::Timeout) => Wake::Check,
                Err(RecvTimeoutError::Disconnected) => Wake::Ended,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;

    /// Longer than any test may take.
    const LONG: Duration = Duration::from_secs(600);

    #[test]
    fn a_wait_ends_on_request_and_when_the_waker_is_dropped() {
        let (mut watch, waker) = FileWatch::new([]).unwrap();
        waker.wake();
        assert_eq!(watch.wait(LONG), Wake::Requested);
        assert_eq!(watch.wait(Duration::ZERO), Wake::Check);
        drop(waker);
        assert_eq!(watch.wait(LONG), Wake::Ended);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_file_that_is_written_or_replaced_ends_a_wait() {
        let directory = tempfile::tempdir().unwrap();
        let (file, new) = (directory.path().join("key.pem"), directory.path().join("new"));
        let (mut watch, _waker) = FileWatch::new([file.as_path()]).unwrap();
        let start = Instant::now();
        std::fs::write(&file, "1").unwrap();
        assert_eq!(watch.wait(LONG), Wake::Check);
        std::fs::write(&new, "2").unwrap();
        assert_eq!(watch.wait(LONG), Wake::Check);
        std::fs::rename(&new, &file).unwrap();
        assert_eq!(watch.wait(LONG), Wake::Check);
        // Links to a directory that is replaced, as Kubernetes updates secrets.
        std::os::unix::fs::symlink("elsewhere", directory.path().join("..data")).unwrap();
        assert_eq!(watch.wait(LONG), Wake::Check);
        assert!(start.elapsed() < LONG);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_directory_that_is_created_later_is_watched_from_the_next_wait_on() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("tls/key.pem");
        let (mut watch, _waker) = FileWatch::new([file.as_path()]).unwrap();
        std::fs::create_dir(file.parent().unwrap()).unwrap();
        assert_eq!(watch.wait(Duration::ZERO), Wake::Check);
        std::fs::write(&file, "1").unwrap();
        let start = Instant::now();
        assert_eq!(watch.wait(LONG), Wake::Check);
        assert!(start.elapsed() < LONG);
    }
}
