//! Windows: the event that stands for a signal.
#![cfg(windows)]
#![allow(unsafe_code, reason = "the standard library has no call for it")]

use std::os::windows::process::CommandExt;
use std::process::{Child, Command};

use windows_sys::Win32::System::Console::{AllocConsole, CTRL_BREAK_EVENT, GenerateConsoleCtrlEvent};
use windows_sys::Win32::System::Threading::CREATE_NEW_PROCESS_GROUP;

/// Makes the process to come the first of a group, which an event can be sent to where there is a console.
pub(crate) fn group(command: &mut Command) {
    static CONSOLE: std::sync::Once = std::sync::Once::new();
    // Fails where there is one already.
    CONSOLE.call_once(|| {
        // SAFETY: the call has no arguments.
        unsafe { AllocConsole() };
    });
    command.creation_flags(CREATE_NEW_PROCESS_GROUP);
}

/// Ctrl-Break for a process that was started in a group of its own.
pub(crate) fn send_break(child: &Child) {
    // SAFETY: the call takes two numbers.
    let sent = unsafe { GenerateConsoleCtrlEvent(CTRL_BREAK_EVENT, child.id()) };
    assert_ne!(sent, 0, "{}", std::io::Error::last_os_error());
}
