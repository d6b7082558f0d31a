//! Windows API calls without a safe wrapper: console events, console escape sequences, and exclusive use of a port.
#![allow(unsafe_code, reason = "neither the standard library nor our dependencies wrap these calls")]

use std::io;
use std::os::windows::io::{AsHandle, AsRawHandle, AsRawSocket, AsSocket};
use std::sync::Mutex;

use windows_sys::Win32::Networking::WinSock::{SO_EXCLUSIVEADDRUSE, SOCKET, SOL_SOCKET, setsockopt};
use windows_sys::Win32::System::Console::{
    CTRL_BREAK_EVENT, CTRL_C_EVENT, CTRL_CLOSE_EVENT, CTRL_LOGOFF_EVENT, CTRL_SHUTDOWN_EVENT,
    ENABLE_VIRTUAL_TERMINAL_PROCESSING, GetConsoleMode, SetConsoleCtrlHandler, SetConsoleMode,
};
use windows_sys::core::BOOL;

use crate::r#loop::lock;

/// A console control event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ConsoleEvent {
    /// Ctrl-C or Ctrl-Break.
    Interrupt,
    /// The console is closed, or the system shuts down: the process is terminated when its handler returns or takes too
    /// long (5 s for a console, somewhat longer for a system shutdown).
    Close,
    /// A user logs off. Only services receive this, and they keep running for other users.
    LogOff,
}

type Handler = Box<dyn FnMut(ConsoleEvent) + Send>;

/// The current handler of console events.
static HANDLER: Mutex<Option<Handler>> = Mutex::new(None);

/// Installs a handler that is called with each console event, on a system thread, until it is replaced or removed with
/// [`remove_console_handler`]. After [`ConsoleEvent::Close`] the process has little time left, but may still exit by
/// itself.
pub(super) fn set_console_handler(handler: impl FnMut(ConsoleEvent) + Send + 'static) -> io::Result<()> {
    *lock(&HANDLER) = Some(Box::new(handler));
    set_ctrl_handler(true)
}

/// Restores the default handling of console events.
pub(super) fn remove_console_handler() {
    // Fails only if the handler was not installed.
    let _ = set_ctrl_handler(false);
    *lock(&HANDLER) = None;
}

fn set_ctrl_handler(add: bool) -> io::Result<()> {
    // SAFETY: the handler is a static function and may be called from any thread: the state it accesses is behind a
    // lock.
    match unsafe { SetConsoleCtrlHandler(Some(on_event), add.into()) } {
        0 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

/// Runs on a thread that the system creates for the event. Must not unwind into the system; the installed handler only
/// sets flags and wakes threads.
unsafe extern "system" fn on_event(number: u32) -> BOOL {
    let event = match number {
        CTRL_C_EVENT | CTRL_BREAK_EVENT => ConsoleEvent::Interrupt,
        CTRL_CLOSE_EVENT | CTRL_SHUTDOWN_EVENT => ConsoleEvent::Close,
        CTRL_LOGOFF_EVENT => ConsoleEvent::LogOff,
        _ => return 0,
    };
    if let Some(handler) = lock(&HANDLER).as_mut() {
        handler(event);
    }
    if event == ConsoleEvent::Close {
        // The system terminates the process when this function returns, so never return: the process exits once the
        // server has drained, or the system terminates it after its time limit.
        loop {
            std::thread::park();
        }
    }
    1
}

/// Enables escape sequences on a console (Windows 10 and later) and returns whether they are supported. Output that is
/// not a console is assumed to be another kind of terminal, which supports them anyway.
pub(super) fn enable_escape_sequences(output: &impl AsHandle) -> bool {
    let handle = output.as_handle().as_raw_handle();
    let mut mode = 0;
    // SAFETY: the handle is borrowed, hence open; the call only writes to `mode`.
    if unsafe { GetConsoleMode(handle, &raw mut mode) } == 0 {
        return true;
    }
    // SAFETY: the handle is borrowed, hence open; the mode is passed by value.
    unsafe { SetConsoleMode(handle, mode | ENABLE_VIRTUAL_TERMINAL_PROCESSING) != 0 }
}

/// Prevents other processes from binding the same port while the socket is open. Otherwise, on Windows, any process of
/// any user can do so by setting `SO_REUSEADDR` on its own socket ("Using `SO_REUSEADDR` and `SO_EXCLUSIVEADDRUSE`",
/// learn.microsoft.com).
pub(super) fn set_exclusive_port(socket: &impl AsSocket) -> io::Result<()> {
    let raw = SOCKET::try_from(socket.as_socket().as_raw_socket()).map_err(io::Error::other)?;
    let yes: i32 = 1;
    let size = i32::try_from(size_of_val(&yes)).unwrap_or(4);
    // SAFETY: the socket is borrowed, hence open; the value has four bytes and outlives the call, which only reads it.
    let outcome = unsafe { setsockopt(raw, SOL_SOCKET, SO_EXCLUSIVEADDRUSE, (&raw const yes).cast(), size) };
    if outcome == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::ConsoleEvent::{Close, Interrupt, LogOff};
    use super::*;

    #[test]
    fn the_console_close_handler_does_not_return() {
        let (send, events) = mpsc::channel();
        set_console_handler(move |event| send.send(event).expect("the test is receiving")).expect("a console");
        for event in [CTRL_C_EVENT, CTRL_BREAK_EVENT, CTRL_LOGOFF_EVENT] {
            // SAFETY: the function may be called with any number on any thread.
            assert_eq!(unsafe { on_event(event) }, 1);
        }
        // SAFETY: the function may be called with any number on any thread.
        assert_eq!(unsafe { on_event(77) }, 0);
        let closing = std::thread::spawn(|| {
            // SAFETY: the function may be called with any number on any thread.
            unsafe { on_event(CTRL_CLOSE_EVENT) }
        });
        let seen: Vec<_> = events.iter().take(4).collect();
        assert_eq!(seen, [Interrupt, Interrupt, LogOff, Close]);
        assert!(!closing.is_finished());
        remove_console_handler();
    }
}
