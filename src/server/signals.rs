//! Signal handling. The first SIGINT or SIGTERM starts a graceful shutdown, the second exits the process at once.
//! SIGHUP and SIGUSR1 (nginx's convention) reopen the access log, so closing the terminal does not stop the server. On
//! Windows it does, since a process does not outlive its console.

use std::io;
#[cfg(unix)]
use std::io::Read;
#[cfg(unix)]
use std::os::unix::net::UnixStream;
#[cfg(unix)]
use std::sync::Arc;
#[cfg(unix)]
use std::sync::atomic::{AtomicBool, Ordering};

/// Number of wake-ups written per shutdown signal, each through a file descriptor of its own: the signal handler does
/// not retry an interrupted write.
#[cfg(unix)]
const WAKEUPS: usize = 3;

/// Keeps the signal handlers registered until it is dropped.
pub(super) struct SignalPipe {
    #[cfg(unix)]
    registered: Vec<signal_hook::SigId>,
    /// The socket pair that wakes the signal thread: read end and write end. Outlives the registrations.
    #[cfg(unix)]
    ends: (UnixStream, UnixStream),
}

#[cfg(unix)]
impl Drop for SignalPipe {
    fn drop(&mut self) {
        for id in self.registered.drain(..) {
            signal_hook::low_level::unregister(id);
        }
        // Fails only if the thread has already ended.
        let _ = self.ends.1.shutdown(std::net::Shutdown::Both);
    }
}

#[cfg(unix)]
impl SignalPipe {
    fn register_wakeup(&mut self, signal: i32, times: usize) -> io::Result<()> {
        for _ in 0..times {
            self.registered.push(signal_hook::low_level::pipe::register(signal, self.ends.1.try_clone()?)?);
        }
        Ok(())
    }
}

/// Calls `drain` on the first SIGINT or SIGTERM; a second one exits the process with status 128 plus the signal number.
/// Until the first one, calls `reopen` on every SIGHUP and SIGUSR1.
///
/// The signal handlers only set a flag and wake a thread, which makes the calls. The exit on a second signal happens in
/// the handler itself, whatever the threads are doing.
#[cfg(unix)]
pub(super) fn watch(drain: impl Fn() + Send + 'static, reopen: impl Fn() + Send + 'static) -> io::Result<SignalPipe> {
    use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGUSR1};
    use signal_hook::flag;

    let (draining, reopen_pending) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
    let mut pipe = SignalPipe { registered: Vec::new(), ends: UnixStream::pair()? };
    for signal in [SIGHUP, SIGUSR1] {
        pipe.registered.push(flag::register(signal, Arc::clone(&reopen_pending))?);
        pipe.register_wakeup(signal, 1)?;
    }
    for signal in [SIGINT, SIGTERM] {
        // The order matters: the first signal must find the flag unset.
        pipe.registered.push(flag::register_conditional_shutdown(signal, 128 + signal, Arc::clone(&draining))?);
        pipe.registered.push(flag::register(signal, Arc::clone(&draining))?);
        pipe.register_wakeup(signal, WAKEUPS)?;
    }
    let mut wakeups = pipe.ends.0.try_clone()?;
    let wait = move || {
        while !draining.load(Ordering::SeqCst) {
            if reopen_pending.swap(false, Ordering::SeqCst) {
                reopen();
            }
            // An error means that the read was interrupted; end of file, that the `SignalPipe` was dropped.
            if matches!(wakeups.read(&mut [0]), Ok(0)) {
                return;
            }
        }
        log::info!("shutting down gracefully; send a second signal to exit immediately");
        drain();
    };
    std::thread::Builder::new().name("signals".into()).spawn(wait)?;
    Ok(pipe)
}

#[cfg(windows)]
impl Drop for SignalPipe {
    fn drop(&mut self) {
        super::windows::remove_console_handler();
    }
}

/// Calls `drain` on the first Ctrl-C or Ctrl-Break, and when the console is closed or the system shuts down; a second
/// Ctrl-C or Ctrl-Break exits the process with status 130, as a shell reports SIGINT. `reopen` is never called on
/// Windows.
#[cfg(windows)]
pub(super) fn watch(drain: impl Fn() + Send + 'static, _reopen: impl Fn() + Send + 'static) -> io::Result<SignalPipe> {
    use super::windows::{ConsoleEvent, set_console_handler};

    let mut draining = false;
    set_console_handler(move |event| match event {
        ConsoleEvent::LogOff => {}
        ConsoleEvent::Interrupt if draining => std::process::exit(130),
        ConsoleEvent::Interrupt | ConsoleEvent::Close => {
            draining = true;
            log::info!("shutting down gracefully; press Ctrl-C again to exit immediately");
            drain();
        }
    })?;
    Ok(SignalPipe {})
}
