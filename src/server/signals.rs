//! Signal handling. The first SIGINT, SIGTERM or SIGQUIT starts a graceful shutdown, the second exits the process at
//! once. SIGHUP and SIGUSR1 (nginx's convention) reopen the access log, so closing the terminal does not stop the
//! server. On Windows, closing the console does, since a process does not outlive its console.

#[cfg(unix)]
use std::io::Read;
use std::io::{self, IsTerminal};
#[cfg(unix)]
use std::os::unix::net::UnixStream;
#[cfg(unix)]
use std::sync::Arc;
#[cfg(unix)]
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
#[cfg(unix)]
use std::time::Instant;

use crate::r#loop::ConnectionLimit;

/// Time after the start of a shutdown at which connections that are still open are reported. Idle ones are closed by
/// then: a loop waits a second for a last request from each.
const REPORT_DELAY: Duration = Duration::from_millis(1200);

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

/// Calls `drain` on the first SIGINT, SIGTERM or SIGQUIT; a second one exits the process with status 128 plus the
/// signal number. Until the first one, calls `reopen` on every SIGHUP and SIGUSR1. After a Ctrl-C at a terminal,
/// reports the number of `open` connections that are being finished.
///
/// The signal handlers only set a flag and wake a thread, which makes the calls. The exit on a second signal happens in
/// the handler itself, whatever the threads are doing.
#[cfg(unix)]
pub(super) fn watch(
    drain: impl Fn() + Send + 'static,
    reopen: impl Fn() + Send + 'static,
    open: ConnectionLimit,
) -> io::Result<SignalPipe> {
    use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1};
    use signal_hook::flag;

    let (draining, reopen_pending) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
    let mut pipe = SignalPipe { registered: Vec::new(), ends: UnixStream::pair()? };
    for signal in [SIGHUP, SIGUSR1] {
        pipe.registered.push(flag::register(signal, Arc::clone(&reopen_pending))?);
        pipe.register_wakeup(signal, 1)?;
    }
    let interrupted = Arc::new(AtomicBool::new(false));
    pipe.registered.push(flag::register(SIGINT, Arc::clone(&interrupted))?);
    for signal in [SIGINT, SIGTERM, SIGQUIT] {
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
        drain();
        log::info!("shutting down gracefully; send a second signal to exit immediately");
        if interrupted.load(Ordering::SeqCst) && sleep_unless_closed(&mut wakeups) {
            report_in_flight(&open);
        }
    };
    std::thread::Builder::new().name("signals".into()).spawn(wait)?;
    Ok(pipe)
}

/// Waits for [`REPORT_DELAY`]; returns whether the server is still running then.
#[cfg(unix)]
fn sleep_unless_closed(wakeups: &mut UnixStream) -> bool {
    let end = Instant::now() + REPORT_DELAY;
    loop {
        let rest = end.saturating_duration_since(Instant::now());
        if rest.is_zero() || wakeups.set_read_timeout(Some(rest)).is_err() {
            return true;
        }
        if matches!(wakeups.read(&mut [0; 16]), Ok(0)) {
            return false;
        }
    }
}

/// Logs the number of connections that a graceful shutdown is finishing, for a person at a terminal.
fn report_in_flight(open: &ConnectionLimit) {
    let count = open.open();
    if count > 0 && io::stderr().is_terminal() {
        let plural = if count == 1 { "" } else { "s" };
        log::warn!("finishing {count} connection{plural}; press Ctrl-C again to exit at once");
    }
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
pub(super) fn watch(
    drain: impl Fn() + Send + 'static,
    _reopen: impl Fn() + Send + 'static,
    open: ConnectionLimit,
) -> io::Result<SignalPipe> {
    use super::windows::{ConsoleEvent, set_console_handler};

    let mut draining = false;
    set_console_handler(move |event| match event {
        ConsoleEvent::LogOff => {}
        ConsoleEvent::Interrupt if draining => std::process::exit(130),
        ConsoleEvent::Interrupt | ConsoleEvent::Close => {
            draining = true;
            drain();
            log::info!("shutting down gracefully; press Ctrl-C again to exit immediately");
            let open = open.clone();
            let report = move || {
                std::thread::sleep(REPORT_DELAY);
                report_in_flight(&open);
            };
            // Without the thread, only the report is missing.
            let _ = std::thread::Builder::new().name("shutdown".into()).spawn(report);
        }
    })?;
    Ok(SignalPipe {})
}
