//! The signals that end a server: the first drains, the second ends the process at once. A hang-up opens the access log
//! again, and so does SIGUSR1, which nginx takes for that; a terminal that closes is no reason to stop serving. On Windows
//! it is one: a process does not outlive its console.

use std::io;
#[cfg(unix)]
use std::io::Read;
#[cfg(unix)]
use std::os::unix::net::UnixStream;
#[cfg(unix)]
use std::sync::Arc;
#[cfg(unix)]
use std::sync::atomic::{AtomicBool, Ordering};

/// How often a signal that ends the server wakes the thread, each time at the price of a descriptor: a write that is
/// interrupted is not repeated in the signal's context.
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

#[cfg(unix)]
impl Watch {
    fn ring_at(&mut self, signal: i32, times: usize) -> io::Result<()> {
        for _ in 0..times {
            self.registered.push(signal_hook::low_level::pipe::register(signal, self.bell.1.try_clone()?)?);
        }
        Ok(())
    }
}

/// Calls `drain` at the first SIGINT or SIGTERM, the second ends the process with 128 and its number; before that, `reopen`
/// at every SIGHUP and SIGUSR1.
///
/// In the signal's own context a flag is set and a thread is woken, nothing more; a second signal ends the process
/// right there, whatever its threads are doing.
#[cfg(unix)]
pub(super) fn watch(drain: impl Fn() + Send + 'static, reopen: impl Fn() + Send + 'static) -> io::Result<Watch> {
    use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGUSR1};
    use signal_hook::flag;

    let (told, again) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
    let mut watch = Watch { registered: Vec::new(), bell: UnixStream::pair()? };
    for signal in [SIGHUP, SIGUSR1] {
        watch.registered.push(flag::register(signal, Arc::clone(&again))?);
        watch.ring_at(signal, 1)?;
    }
    for signal in [SIGINT, SIGTERM] {
        // In this order: the first signal finds the flag unset.
        watch.registered.push(flag::register_conditional_shutdown(signal, 128 + signal, Arc::clone(&told))?);
        watch.registered.push(flag::register(signal, Arc::clone(&told))?);
        watch.ring_at(signal, RINGS)?;
    }
    let mut bell = watch.bell.0.try_clone()?;
    let wait = move || {
        while !told.load(Ordering::SeqCst) {
            if again.swap(false, Ordering::SeqCst) {
                reopen();
            }
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
/// Ctrl-C or Ctrl-Break ends the process with 130, as a shell would say it. Nothing here calls for
/// `reopen`.
#[cfg(windows)]
pub(super) fn watch(drain: impl Fn() + Send + 'static, _reopen: impl Fn() + Send + 'static) -> io::Result<Watch> {
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
