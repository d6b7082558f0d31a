//! The connection table of a loop: a slab whose slots have serial numbers.
//!
//! A slot gets a new serial each time it is reused, and every token and [`ConnId`] includes the serial. An event or a
//! message for a closed connection thus never reaches the connection that now occupies its slot.

use super::readiness::Token;

/// Number of bits of a token that hold the index: 32 of 64; on 32-bit systems 20, enough for a million connections.
const INDEX_BITS: u32 = if usize::BITS >= 64 { 32 } else { 20 };
const SERIAL_MASK: usize = usize::MAX >> INDEX_BITS;

/// Identifies a connection of a loop.
///
/// Ids are not reused: a slot of the connection table gets a new serial number for each connection, so that a message
/// for a closed connection cannot reach the one that now occupies its slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ConnId {
    pub(super) index: u32,
    pub(super) serial: u32,
}

impl ConnId {
    /// Creates an id that belongs to no loop, for testing an application without sockets; see
    /// [`Wire::from_bytes`](super::Wire::from_bytes).
    pub fn detached(number: u32) -> Self {
        ConnId { index: number, serial: 0 }
    }

    /// Returns the number of the slot, which is less than the maximum number of open connections so far.
    #[inline]
    pub(crate) fn slot(self) -> usize {
        self.index as usize
    }

    #[inline]
    pub(super) fn token(self) -> Token {
        Token((self.serial as usize & SERIAL_MASK) << INDEX_BITS | self.index as usize)
    }
}

struct Slot<T> {
    serial: u32,
    entry: Option<T>,
}

/// A free slot of a [`Table`]. The id is known before the entry is inserted.
pub(super) struct VacantEntry<'a, T> {
    index: u32,
    slot: &'a mut Slot<T>,
    free: &'a mut Vec<u32>,
    len: &'a mut usize,
}

impl<'a, T> VacantEntry<'a, T> {
    #[inline]
    pub(super) fn id(&self) -> ConnId {
        ConnId { index: self.index, serial: self.slot.serial }
    }

    /// Inserts an entry and returns a reference to it.
    #[allow(clippy::inline_always, reason = "hot path of a connection")]
    #[inline(always)]
    pub(super) fn insert(self, entry: T) -> &'a mut T {
        self.free.pop();
        *self.len += 1;
        // A free slot has no entry. With code that drops an old or the new one, the compiler would create the new one
        // elsewhere and copy it.
        debug_assert!(self.slot.entry.is_none());
        std::mem::forget(self.slot.entry.take());
        self.slot.entry.get_or_insert(entry)
    }
}

/// A slab of `T`, accessed by id and serial.
pub(super) struct Table<T> {
    slots: Vec<Slot<T>>,
    free: Vec<u32>,
    len: usize,
    /// Serial of a new slot: higher than those of slots that were removed, so that ids stay unique.
    first_serial: u32,
}

impl<T> Table<T> {
    pub(super) fn new() -> Self {
        Table { slots: Vec::new(), free: Vec::new(), len: 0, first_serial: 0 }
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Returns the slot that the next insertion will use.
    #[allow(clippy::inline_always, reason = "hot path of a connection")]
    #[inline(always)]
    pub(super) fn vacant_entry(&mut self) -> VacantEntry<'_, T> {
        if self.free.is_empty() {
            self.add_slot();
        }
        let index = self.free[self.free.len() - 1];
        VacantEntry { index, slot: &mut self.slots[index as usize], free: &mut self.free, len: &mut self.len }
    }

    /// Adds a free slot at the end.
    #[cold]
    fn add_slot(&mut self) {
        let index = u32::try_from(self.slots.len()).unwrap_or(u32::MAX - 1);
        self.slots.push(Slot { serial: self.first_serial, entry: None });
        self.free.push(index);
    }

    /// Returns an id that is not used by any insertion.
    #[cold]
    pub(super) fn skip_id(&mut self) -> ConnId {
        let entry = self.vacant_entry();
        let id = entry.id();
        entry.slot.serial = entry.slot.serial.wrapping_add(1);
        id
    }

    #[inline]
    pub(super) fn get_mut(&mut self, id: ConnId) -> Option<&mut T> {
        let slot = self.slots.get_mut(id.index as usize)?;
        if slot.serial == id.serial { slot.entry.as_mut() } else { None }
    }

    /// Returns the entry for a token, unless the token is stale.
    #[inline]
    pub(super) fn resolve(&mut self, token: Token) -> Option<(ConnId, &mut T)> {
        let index = token.0 & (usize::MAX >> (usize::BITS - INDEX_BITS));
        let slot = self.slots.get_mut(index)?;
        let id = ConnId { index: u32::try_from(index).ok()?, serial: slot.serial };
        if id.token() == token { Some((id, slot.entry.as_mut()?)) } else { None }
    }

    /// Returns the id of the entry in a slot, regardless of its serial.
    pub(super) fn at(&self, index: u32) -> Option<ConnId> {
        let slot = self.slots.get(index as usize)?;
        slot.entry.is_some().then_some(ConnId { index, serial: slot.serial })
    }

    #[allow(clippy::inline_always, reason = "hot path of a connection: an entry is large, and a call would copy it")]
    #[inline(always)]
    pub(super) fn remove(&mut self, id: ConnId) -> Option<T> {
        let slot = self.slots.get_mut(id.index as usize)?;
        if slot.serial != id.serial || slot.entry.is_none() {
            return None;
        }
        slot.serial = slot.serial.wrapping_add(1);
        self.free.push(id.index);
        self.len -= 1;
        slot.entry.take()
    }

    /// Removes the free slots at the end and frees their memory. The lowest of the others are used next, so that later
    /// calls can remove more. Returns the number of slots left.
    pub(super) fn shrink(&mut self) -> usize {
        let left = self.slots.iter().rposition(|slot| slot.entry.is_some()).map_or(0, |last| last + 1);
        let highest = self.slots[left..].iter().map(|slot| slot.serial).max();
        self.first_serial = self.first_serial.max(highest.unwrap_or(0));
        self.slots.truncate(left);
        self.slots.shrink_to_fit();
        self.free.retain(|&index| (index as usize) < left);
        // With an order of its own, the sort would be compiled for each type of entries.
        self.free.sort_unstable();
        self.free.reverse();
        self.free.shrink_to_fit();
        left
    }

    /// Returns the ids of all entries.
    pub(super) fn ids(&self) -> Vec<ConnId> {
        (0..self.slots.len()).filter_map(|index| self.at(u32::try_from(index).ok()?)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn insert<T>(table: &mut Table<T>, entry: T) -> ConnId {
        let vacant = table.vacant_entry();
        let id = vacant.id();
        vacant.insert(entry);
        id
    }

    #[test]
    fn ids_stay_unique_when_free_slots_are_removed() {
        let mut table = Table::new();
        let ids: Vec<ConnId> = (0..6).map(|number| insert(&mut table, number)).collect();
        for index in [5, 3, 1, 4, 0] {
            table.remove(ids[index]);
        }
        assert_eq!(table.shrink(), 3);
        let new: Vec<ConnId> = (0..6).map(|number| insert(&mut table, number)).collect();
        let indices: Vec<u32> = new.iter().map(|id| id.index).collect();
        assert_eq!(indices, [0, 1, 3, 4, 5, 6]);
        assert!(new.iter().all(|id| !ids.contains(id)), "{new:?}");
        assert_eq!((table.get_mut(ids[2]).copied(), table.get_mut(ids[5])), (Some(2), None));
        assert_eq!(table.len(), 7);
    }

    #[test]
    fn a_stale_id_does_not_reach_a_reused_slot() {
        let mut table = Table::new();
        let first = insert(&mut table, 'a');
        assert_eq!(table.resolve(first.token()), Some((first, &mut 'a')));
        assert_eq!(table.remove(first), Some('a'));
        let second = insert(&mut table, 'b');
        assert_eq!(first.index, second.index);
        assert_eq!(table.get_mut(first), None);
        assert_eq!(table.remove(first), None);
        assert_eq!(table.resolve(first.token()), None);
        assert_eq!(table.get_mut(second), Some(&mut 'b'));
        assert_eq!(table.len(), 1);
        assert_eq!(table.ids(), [second]);
    }
}
