//! The private keys that this process has read, so that the file server can refuse their files under any name.
//!
//! A key is recognized by its content. The path that it was read from is not enough: a renewal may keep the previous key
//! as a backup, and a key in use can be renamed or copied. Device and inode number miss copies, and would refuse the next
//! file that gets the number of a deleted key.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

use sha2::{Digest, Sha256};

/// Maximum number of keys that are remembered; those read last. Keys in use are read again once a day, and so stay.
const KEYS_MAX: usize = 1024;

/// The length and the SHA-256 hash of a file.
type Content = (u64, [u8; 32]);

static KEYS: Mutex<LoadedKeys> = Mutex::new(LoadedKeys(VecDeque::new()));

/// Keys in the order in which they were last read.
struct LoadedKeys(VecDeque<Content>);

impl LoadedKeys {
    fn record(&mut self, key: Content) {
        self.0.retain(|known| *known != key);
        if self.0.len() >= KEYS_MAX {
            self.0.pop_front();
        }
        self.0.push_back(key);
    }
}

/// Locks the keys. They are consistent after every statement, also of a thread that panics.
fn keys() -> MutexGuard<'static, LoadedKeys> {
    KEYS.lock().unwrap_or_else(PoisonError::into_inner)
}

fn content(file: &[u8]) -> Content {
    (file.len() as u64, Sha256::digest(file).into())
}

/// Records the content of a file with a private key.
pub(super) fn record(file: &[u8]) {
    keys().record(content(file));
}

/// Returns whether a file of this length may hold one of the keys, so that its content has to be compared.
#[cfg(feature = "files")]
pub(crate) fn may_be_loaded_key(len: u64) -> bool {
    keys().0.iter().any(|(known, _)| *known == len)
}

/// Returns whether this is the content of a file that one of the keys was read from.
#[cfg(feature = "files")]
pub(crate) fn is_loaded_key(file: &[u8]) -> bool {
    let content = content(file);
    keys().0.contains(&content)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_keys_read_last_are_remembered() {
        let mut keys = LoadedKeys(VecDeque::new());
        let key = |number: usize| content(&number.to_be_bytes());
        for number in 0..KEYS_MAX {
            keys.record(key(number));
            // A key in use is read again and again.
            keys.record(key(0));
        }
        assert_eq!(keys.0.len(), KEYS_MAX);
        keys.record(key(KEYS_MAX));
        assert_eq!(keys.0.len(), KEYS_MAX);
        assert!(keys.0.contains(&key(0)) && keys.0.contains(&key(KEYS_MAX)) && !keys.0.contains(&key(1)));
    }
}
