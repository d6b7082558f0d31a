//! Windows: sends Ctrl-Break, which replaces signals.
#![cfg(windows)]
#![allow(unsafe_code, reason = "the standard library does not wrap these functions")]

use std::os::windows::process::CommandExt;
use std::process::{Child, Command};

use windows_sys::Win32::System::Console::{AllocConsole, CTRL_BREAK_EVENT, GenerateConsoleCtrlEvent};
use windows_sys::Win32::System::Threading::CREATE_NEW_PROCESS_GROUP;

/// Makes `command` start its process in a new process group, so that Ctrl-Break can be sent to it alone. Allocates a
/// console if there is none, since the event needs one.
pub(crate) fn new_process_group(command: &mut Command) {
    static CONSOLE: std::sync::Once = std::sync::Once::new();
    // Fails if there is a console already.
    CONSOLE.call_once(|| {
        // SAFETY: the function has no arguments.
        unsafe { AllocConsole() };
    });
    command.creation_flags(CREATE_NEW_PROCESS_GROUP);
}

/// Sends Ctrl-Break to a process that was started in its own process group.
pub(crate) fn send_break(child: &Child) {
    // SAFETY: the arguments are two integers.
    let sent = unsafe { GenerateConsoleCtrlEvent(CTRL_BREAK_EVENT, child.id()) };
    assert_ne!(sent, 0, "{}", std::io::Error::last_os_error());
}
