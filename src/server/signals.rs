//! The signals that end a server: the first drains, the second ends the process at once. A hang-up changes nothing:
//! there is no configuration to be read again, and a terminal that closes is no reason to stop serving.

use std::io;

/// Signals are watched as long as this lives.
pub(super) struct Watch {
    #[cfg(unix)]
    signals: signal_hook::iterator::Handle,
}

#[cfg(unix)]
impl Drop for Watch {
    fn drop(&mut self) {
        self.signals.close();
    }
}

/// Calls `drain` at the first SIGINT or SIGTERM; the second ends the process with 128 and its number. What is called in
/// the signal's own context only wakes a thread.
#[cfg(unix)]
pub(super) fn watch(drain: impl Fn() + Send + 'static) -> io::Result<Watch> {
    use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
    let mut signals = signal_hook::iterator::Signals::new([SIGHUP, SIGINT, SIGTERM])?;
    let watch = Watch { signals: signals.handle() };
    let wait = move || {
        let mut draining = false;
        for signal in signals.forever() {
            if signal == SIGHUP {
                log::info!("a hang-up changes nothing; SIGTERM ends the server");
                continue;
            }
            if std::mem::replace(&mut draining, true) {
                std::process::exit(128 + signal);
            }
            log::info!("draining; a second signal ends at once");
            drain();
        }
    };
    std::thread::Builder::new().name("signals".into()).spawn(wait)?;
    Ok(watch)
}

/// Calls `drain` at the first Ctrl-C; the second ends the process.
#[cfg(windows)]
pub(super) fn watch(drain: impl Fn() + Send + 'static) -> io::Result<Watch> {
    let mut count = 0;
    let handler = move || {
        count += 1;
        if count > 1 {
            std::process::exit(130);
        }
        log::info!("draining; a second Ctrl-C ends at once");
        drain();
    };
    ctrlc::set_handler(handler).map_err(io::Error::other)?;
    Ok(Watch {})
}
