//! What a server asks of Windows itself, and Rust has no safe call for: the console's events and colours, and a port of
//! one's own.
#![allow(unsafe_code, reason = "neither the standard library nor a kept crate has these calls")]

use std::io;
use std::os::windows::io::{AsHandle, AsRawHandle, AsRawSocket, AsSocket};
use std::sync::{Mutex, PoisonError};

use windows_sys::Win32::Networking::WinSock::{SO_EXCLUSIVEADDRUSE, SOCKET, SOL_SOCKET, setsockopt};
use windows_sys::Win32::System::Console::{
    CTRL_BREAK_EVENT, CTRL_C_EVENT, CTRL_CLOSE_EVENT, CTRL_LOGOFF_EVENT, CTRL_SHUTDOWN_EVENT,
    ENABLE_VIRTUAL_TERMINAL_PROCESSING, GetConsoleMode, SetConsoleCtrlHandler, SetConsoleMode,
};
use windows_sys::core::BOOL;

/// What the console tells a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ConsoleEvent {
    /// Ctrl-C or Ctrl-Break: somebody asks the process to end.
    Interrupt,
    /// The console is closed, or the system goes down: the process ends when its handler returns, or takes too long
    /// (5 s for a console, some more for the system).
    Close,
    /// Somebody logs off. Only a service is told, and the others still want it.
    LogOff,
}

type Listener = Box<dyn FnMut(ConsoleEvent) + Send>;

/// Whom the console's events are told to.
static TOLD: Mutex<Option<Listener>> = Mutex::new(None);

/// Calls `tell` with the console's events from now on, on a thread of the system, until it is replaced or
/// [`ignore_console`] is called. After [`ConsoleEvent::Close`] the process has little time, but ends in its own way if
/// it does so meanwhile.
pub(super) fn listen_to_console(tell: impl FnMut(ConsoleEvent) + Send + 'static) -> io::Result<()> {
    *TOLD.lock().unwrap_or_else(PoisonError::into_inner) = Some(Box::new(tell));
    set_handler(true)
}

/// Gives the console's events back to the system.
pub(super) fn ignore_console() {
    // Fails only where the handler was not set.
    let _ = set_handler(false);
    *TOLD.lock().unwrap_or_else(PoisonError::into_inner) = None;
}

fn set_handler(add: bool) -> io::Result<()> {
    // SAFETY: the handler is a function of this program, which lives as long as the process, and it may be called from
    // any thread: all it touches is behind a lock.
    match unsafe { SetConsoleCtrlHandler(Some(on_event), add.into()) } {
        0 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

/// Runs on a thread that the system makes for the event. It must not unwind into the system; what it calls sets flags
/// and wakes threads.
unsafe extern "system" fn on_event(number: u32) -> BOOL {
    let event = match number {
        CTRL_C_EVENT | CTRL_BREAK_EVENT => ConsoleEvent::Interrupt,
        CTRL_CLOSE_EVENT | CTRL_SHUTDOWN_EVENT => ConsoleEvent::Close,
        CTRL_LOGOFF_EVENT => ConsoleEvent::LogOff,
        _ => return 0,
    };
    if let Some(tell) = TOLD.lock().unwrap_or_else(PoisonError::into_inner).as_mut() {
        tell(event);
    }
    if event == ConsoleEvent::Close {
        // The process ends when this function returns. So it does not: the server ends it once it has drained, or the
        // system when it has waited long enough.
        loop {
            std::thread::park();
        }
    }
    1
}

/// Has a console take escape sequences for what they mean, as each does since Windows 10 once it is told; false where it
/// does not. What is no console is a terminal of another kind, which does it by itself.
pub(super) fn takes_escape_sequences(output: &impl AsHandle) -> bool {
    let handle = output.as_handle().as_raw_handle();
    let mut mode = 0;
    // SAFETY: the handle is borrowed and so open; the call writes the number it is given a place for.
    if unsafe { GetConsoleMode(handle, &raw mut mode) } == 0 {
        return true;
    }
    // SAFETY: as above; the call takes a number.
    unsafe { SetConsoleMode(handle, mode | ENABLE_VIRTUAL_TERMINAL_PROCESSING) != 0 }
}

/// Lets nobody else bind the port while the socket is open, which on Windows any process of any user can do otherwise,
/// by `SO_REUSEADDR` on its own socket ("Using `SO_REUSEADDR` and `SO_EXCLUSIVEADDRUSE`", learn.microsoft.com).
pub(super) fn take_port_exclusively(socket: &impl AsSocket) -> io::Result<()> {
    let raw = SOCKET::try_from(socket.as_socket().as_raw_socket()).map_err(io::Error::other)?;
    let yes: i32 = 1;
    let size = i32::try_from(size_of_val(&yes)).unwrap_or(4);
    // SAFETY: the socket is borrowed and so open; the value is four octets that outlive the call, which only reads them.
    let outcome = unsafe { setsockopt(raw, SOL_SOCKET, SO_EXCLUSIVEADDRUSE, (&raw const yes).cast(), size) };
    if outcome == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::ConsoleEvent::{Close, Interrupt, LogOff};
    use super::*;

    #[test]
    fn the_console_tells_of_its_end_and_waits_for_the_server() {
        let (send, told) = mpsc::channel();
        listen_to_console(move |event| send.send(event).expect("the test listens")).expect("a console");
        for event in [CTRL_C_EVENT, CTRL_BREAK_EVENT, CTRL_LOGOFF_EVENT] {
            // SAFETY: the function takes any number, on any thread.
            assert_eq!(unsafe { on_event(event) }, 1);
        }
        // SAFETY: as above.
        assert_eq!(unsafe { on_event(77) }, 0);
        let closing = std::thread::spawn(|| {
            // SAFETY: as above.
            unsafe { on_event(CTRL_CLOSE_EVENT) }
        });
        let seen: Vec<_> = told.iter().take(4).collect();
        assert_eq!(seen, [Interrupt, Interrupt, LogOff, Close]);
        assert!(!closing.is_finished());
        ignore_console();
    }
}
