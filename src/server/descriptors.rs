//! How many connections the system lets a process hold: one descriptor each.

/// More than this is not asked for, whatever the system allows.
const CONNECTIONS_MAX: usize = 1_000_000;

/// Descriptors that are not for connections: the standard three, the log, the signals, and what an application opens.
const RESERVE: usize = 64;

/// What each worker needs besides: listener, poller, waker.
const RESERVE_PER_WORKER: usize = 8;

/// How many connections to hold: as many as were `asked` for, or else what the descriptors allow, where each worker
/// keeps so many `files` open besides. Raises the limit of descriptors as far as the system lets a process do that
/// itself.
pub(super) fn connections_max(asked: Option<usize>, workers: usize, files: usize) -> usize {
    let Some(descriptors) = raise() else {
        return asked.unwrap_or(CONNECTIONS_MAX);
    };
    let reserve = (RESERVE + (RESERVE_PER_WORKER + files) * workers).min(descriptors / 2);
    let room = descriptors - reserve;
    match asked {
        None => room.min(CONNECTIONS_MAX),
        Some(asked) => {
            if asked > room {
                log::warn!(
                    "descriptors suffice for about {room} connections, not {asked}; raise the limit (ulimit -n) or \
                     lower --max-connections"
                );
            }
            asked
        }
    }
}

/// What macOS grants a process at most, though it calls its limit infinite and refuses that very value (`OPEN_MAX`,
/// setrlimit(2)).
#[cfg(unix)]
const OPEN_MAX: u64 = 10_240;

/// Raises the limit; `None` where there is none.
#[cfg(unix)]
fn raise() -> Option<usize> {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    let more = |wanted: &Option<u64>| current.is_some_and(|current| wanted.is_none_or(|wanted| wanted > current));
    let raised = [maximum, Some(OPEN_MAX)].into_iter().filter(more).find(|&wanted| {
        let allowed = wanted.is_none_or(|wanted| maximum.is_none_or(|maximum| wanted <= maximum));
        allowed && setrlimit(Resource::Nofile, Rlimit { current: wanted, maximum }).is_ok()
    });
    raised.unwrap_or(current).map(|limit| usize::try_from(limit).unwrap_or(usize::MAX))
}

#[cfg(not(unix))]
fn raise() -> Option<usize> {
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_asked_for_holds_and_else_a_reserve_is_kept() {
        assert_eq!(connections_max(Some(7), 1, 0), 7);
        let own = connections_max(None, 1, 0);
        assert!((1..=CONNECTIONS_MAX).contains(&own), "{own}");
        assert!(connections_max(None, 100, 0) <= own);
        assert!(connections_max(None, 1, 256) <= own);
    }
}
