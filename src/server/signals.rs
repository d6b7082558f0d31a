//! The signals that end a server: the first drains, the second ends the process at once.

use std::io;

/// Calls `drain` at the first SIGINT or SIGTERM; the second ends the process with 128 and its number.
#[cfg(unix)]
pub(super) fn watch(drain: impl Fn() + Send + 'static) -> io::Result<()> {
    use signal_hook::consts::{SIGINT, SIGTERM};
    let mut signals = signal_hook::iterator::Signals::new([SIGINT, SIGTERM])?;
    let wait = move || {
        for (count, signal) in signals.forever().enumerate() {
            if count > 0 {
                std::process::exit(128 + signal);
            }
            log::info!("draining; a second signal ends at once");
            drain();
        }
    };
    std::thread::Builder::new().name("signals".into()).spawn(wait).map(drop)
}

/// Calls `drain` at the first Ctrl-C; the second ends the process.
#[cfg(windows)]
pub(super) fn watch(drain: impl Fn() + Send + 'static) -> io::Result<()> {
    let mut count = 0;
    let handler = move || {
        count += 1;
        if count > 1 {
            std::process::exit(130);
        }
        log::info!("draining; a second Ctrl-C ends at once");
        drain();
    };
    ctrlc::set_handler(handler).map_err(io::Error::other)
}
