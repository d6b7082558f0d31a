//! Waits for changes of files, with inotify on Linux. Elsewhere, and on network file systems, which report nothing, the end
//! of a time limit is the occasion to compare the files.

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
    use std::thread;
    use std::time::Duration;

    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    use rustix::fs::inotify::{self, CreateFlags, WatchFlags};

    use super::Wake;

    /// Delay of the report of a change, in which further ones may follow: a certificate and its key are two files. It also
    /// limits how often files in a busy directory are compared.
    const SETTLE_TIME: Duration = Duration::from_millis(500);

    /// Waits for changes in the directories of files. A file that is a symbolic link is reported when the link is replaced,
    /// or a link beside it, as with secrets that Kubernetes mounts.
    pub(in super::super) struct FileWatch {
        directories: BTreeSet<PathBuf>,
        /// `None` if the user has the maximum number of instances, which is 128 by default.
        inotify: Option<OwnedFd>,
        requests: PipeReader,
    }

    /// Ends a wait.
    pub(in super::super) struct Waker(PipeWriter);

    impl Waker {
        pub(in super::super) fn wake(&self) {
            // Fails if the pipe is full, so that a request is pending, or if the thread has ended.
            let _ = (&self.0).write(&[0]);
        }
    }

    impl FileWatch {
        /// Starts to watch the directories of these files.
        pub(in super::super) fn new<'a>(files: impl IntoIterator<Item = &'a Path>) -> io::Result<(Self, Waker)> {
            let directory = |file: &Path| Some(std::path::absolute(file).ok()?.parent()?.to_owned());
            let directories: BTreeSet<PathBuf> = files.into_iter().filter_map(directory).collect();
            let inotify = watch(&directories).inspect_err(|error| {
                log::warn!("cannot watch files for changes ({error}); they are compared once a minute");
            });
            let (requests, waker) = io::pipe()?;
            rustix::io::ioctl_fionbio(&waker, true)?;
            Ok((FileWatch { directories, inotify: inotify.ok(), requests }, Waker(waker)))
        }

        /// Waits for a change, a request, or the end of `limit`. Changes from before the end of this call are not reported
        /// by the next one, so compare the files in between.
        pub(in super::super) fn wait(&mut self, limit: Duration) -> Wake {
            let (mut wake, is_changed) = self.wait_for(limit, true);
            if is_changed && wake == Wake::Check {
                (wake, _) = self.wait_for(SETTLE_TIME, false);
            }
            // The directories may have been replaced.
            self.inotify = watch(&self.directories).ok();
            wake
        }

        /// Waits for a request, and for changes if `with_changes`. Returns whether there was a change.
        fn wait_for(&mut self, limit: Duration, with_changes: bool) -> (Wake, bool) {
            let requests = PollFd::new(&self.requests, PollFlags::IN);
            let changes =
                self.inotify.iter().filter(|_| with_changes).map(|inotify| PollFd::new(inotify, PollFlags::IN));
            let mut fds: Vec<PollFd<'_>> = [requests].into_iter().chain(changes).collect();
            let limit = Timespec::try_from(limit).ok();
            if poll(&mut fds, limit.as_ref()).is_err() {
                // The comparison that follows finds nothing. The delay is for an error that persists.
                thread::sleep(SETTLE_TIME);
            }
            let [is_requested, is_changed] =
                [0, 1].map(|index| fds.get(index).is_some_and(|fd| !fd.revents().is_empty()));
            drop(fds);
            let wake = match is_requested.then(|| self.requests.read(&mut [0; 64]).unwrap_or(0)) {
                Some(0) => Wake::Ended,
                Some(_) => Wake::Requested,
                None => Wake::Check,
            };
            (wake, is_changed)
        }
    }

    /// Creates an instance of inotify for the directories that exist.
    fn watch(directories: &BTreeSet<PathBuf>) -> io::Result<OwnedFd> {
        let inotify = inotify::init(CreateFlags::CLOEXEC)?;
        let files = WatchFlags::CLOSE_WRITE | WatchFlags::CREATE | WatchFlags::MOVED_TO | WatchFlags::ATTRIB;
        let flags = files | WatchFlags::DELETE_SELF | WatchFlags::MOVE_SELF | WatchFlags::ONLYDIR;
        for directory in directories {
            // A directory that is created later is watched from the next check on.
            if let Err(error) = inotify::add_watch(&inotify, directory.as_path(), flags) {
                log::debug!("cannot watch {}: {error}", directory.display());
            }
        }
        Ok(inotify)
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
    #[cfg(target_os = "linux")]
    use std::os::unix::fs::PermissionsExt;
    use std::time::Duration;
    #[cfg(target_os = "linux")]
    use std::time::Instant;

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
        // A change of the permissions may make a file readable.
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).unwrap();
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
    fn a_directory_that_is_created_or_replaced_is_watched_from_the_next_wait_on() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("tls/key.pem");
        let (mut watch, _waker) = FileWatch::new([file.as_path()]).unwrap();
        std::fs::create_dir(file.parent().unwrap()).unwrap();
        assert_eq!(watch.wait(Duration::ZERO), Wake::Check);
        std::fs::write(&file, "1").unwrap();
        let start = Instant::now();
        assert_eq!(watch.wait(LONG), Wake::Check);
        std::fs::rename(file.parent().unwrap(), directory.path().join("old")).unwrap();
        assert_eq!(watch.wait(LONG), Wake::Check);
        std::fs::create_dir(file.parent().unwrap()).unwrap();
        assert_eq!(watch.wait(Duration::ZERO), Wake::Check);
        std::fs::write(&file, "2").unwrap();
        assert_eq!(watch.wait(LONG), Wake::Check);
        assert!(start.elapsed() < LONG);
    }
}
