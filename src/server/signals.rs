//! The signals that end a server: the first drains, the second ends the process at once. A hang-up changes nothing:
//! there is no configuration to be read again, and a terminal that closes is no reason to stop serving. On Windows it is
//! one: a process does not outlive its console.

use std::io;
#[cfg(unix)]
use std::io::Read;
#[cfg(unix)]
use std::os::unix::net::UnixStream;
#[cfg(unix)]
use std::sync::Arc;
#[cfg(unix)]
use std::sync::atomic::{AtomicBool, Ordering};

/// How often a signal wakes the thread: a write that is interrupted is not repeated in the signal's context.
#[cfg(unix)]
const RINGS: usize = 3;

/// Signals are watched as long as this lives.
pub(super) struct Watch {
    #[cfg(unix)]
    registered: Vec<signal_hook::SigId>,
    /// Both ends of what wakes the thread; they outlive the registrations.
    #[cfg(unix)]
    bell: (UnixStream, UnixStream),
}

#[cfg(unix)]
impl Drop for Watch {
    fn drop(&mut self) {
        for id in self.registered.drain(..) {
            signal_hook::low_level::unregister(id);
        }
        // Fails only where the thread has ended already.
        let _ = self.bell.1.shutdown(std::net::Shutdown::Both);
    }
}

/// Calls `drain` at the first SIGINT or SIGTERM; the second ends the process with 128 and its number.
///
/// In the signal's own context a flag is set and a thread is woken, nothing more; a second signal ends the process
/// right there, whatever its threads are doing.
#[cfg(unix)]
pub(super) fn watch(drain: impl Fn() + Send + 'static) -> io::Result<Watch> {
    use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
    use signal_hook::{flag, low_level::pipe};

    let told = Arc::new(AtomicBool::new(false));
    let mut watch = Watch { registered: vec![flag::register(SIGHUP, Arc::default())?], bell: UnixStream::pair()? };
    for signal in [SIGINT, SIGTERM] {
        // In this order: the first signal finds the flag unset.
        watch.registered.push(flag::register_conditional_shutdown(signal, 128 + signal, Arc::clone(&told))?);
        watch.registered.push(flag::register(signal, Arc::clone(&told))?);
        for _ in 0..RINGS {
            watch.registered.push(pipe::register(signal, watch.bell.1.try_clone()?)?);
        }
    }
    let mut bell = watch.bell.0.try_clone()?;
    let wait = move || {
        while !told.load(Ordering::SeqCst) {
            // An error is an interruption; the end comes when the watch is over.
            if matches!(bell.read(&mut [0]), Ok(0)) {
                return;
            }
        }
        log::info!("draining; a second signal ends at once");
        drain();
    };
    std::thread::Builder::new().name("signals".into()).spawn(wait)?;
    Ok(watch)
}

#[cfg(windows)]
impl Drop for Watch {
    fn drop(&mut self) {
        super::windows::ignore_console();
    }
}

/// Calls `drain` at the first Ctrl-C or Ctrl-Break, and when the console is closed or the system goes down; a second
/// Ctrl-C or Ctrl-Break ends the process with 130, as a shell would say it.
#[cfg(windows)]
pub(super) fn watch(drain: impl Fn() + Send + 'static) -> io::Result<Watch> {
    use super::windows::{ConsoleEvent, listen_to_console};

    let mut told = false;
    listen_to_console(move |event| match event {
        ConsoleEvent::LogOff => {}
        ConsoleEvent::Interrupt if told => std::process::exit(130),
        ConsoleEvent::Interrupt | ConsoleEvent::Close => {
            told = true;
            log::info!("draining; a second Ctrl-C ends at once");
            drain();
        }
    })?;
    Ok(Watch {})
}
