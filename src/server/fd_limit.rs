//! The file descriptor limit of the process, and the connection limit derived from it.

/// Upper bound of the derived connection limit, however many descriptors the system allows.
const CONNECTIONS_MAX: usize = 1_000_000;

/// File descriptors reserved for other purposes: standard streams, log, signals, and files an application opens.
const RESERVE: usize = 64;

/// File descriptors reserved per worker: listener, poller, waker.
const RESERVE_PER_WORKER: usize = 8;

/// Returns the connection limit: `configured`, or else as many as the file descriptor limit allows if each worker also
/// keeps `files` files open. Raises the soft limit of the process as far as possible.
pub(super) fn connections_max(configured: Option<usize>, workers: usize, files: usize) -> usize {
    let Some(descriptors) = raise_soft_limit() else {
        return configured.unwrap_or(CONNECTIONS_MAX);
    };
    let reserve = (RESERVE + (RESERVE_PER_WORKER + files) * workers).min(descriptors / 2);
    let available = descriptors - reserve;
    match configured {
        None => available.min(CONNECTIONS_MAX),
        Some(configured) => {
            if configured > available {
                log::warn!(
                    "the file descriptor limit allows about {available} connections, not {configured}; raise the limit \
                     (ulimit -n) or lower --max-connections"
                );
            }
            configured
        }
    }
}

/// Maximum soft limit on macOS, which reports an infinite hard limit but rejects that value (`OPEN_MAX`, setrlimit(2)).
#[cfg(unix)]
const OPEN_MAX: u64 = 10_240;

/// Raises the soft limit as far as possible and returns it; `None` if there is no limit.
#[cfg(unix)]
fn raise_soft_limit() -> Option<usize> {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    let is_higher = |limit: &Option<u64>| current.is_some_and(|current| limit.is_none_or(|limit| limit > current));
    let raised = [maximum, Some(OPEN_MAX)].into_iter().filter(is_higher).find(|&limit| {
        let allowed = limit.is_none_or(|limit| maximum.is_none_or(|maximum| limit <= maximum));
        allowed && setrlimit(Resource::Nofile, Rlimit { current: limit, maximum }).is_ok()
    });
    raised.unwrap_or(current).map(|limit| usize::try_from(limit).unwrap_or(usize::MAX))
}

#[cfg(not(unix))]
fn raise_soft_limit() -> Option<usize> {
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_configured_limit_is_kept_and_a_derived_one_leaves_a_reserve() {
        assert_eq!(connections_max(Some(7), 1, 0), 7);
        let derived = connections_max(None, 1, 0);
        assert!((1..=CONNECTIONS_MAX).contains(&derived), "{derived}");
        assert!(connections_max(None, 100, 0) <= derived);
        assert!(connections_max(None, 1, 256) <= derived);
    }
}
