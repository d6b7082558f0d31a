//! The connections of a loop: a slab whose slots carry a serial.
//!
//! A slot that was used before gets another serial, and every token and [`ConnId`] carries the serial
//! it was made with. So an event, a letter or an answer for a connection that is gone finds nobody,
//! also when its slot has a new tenant.

use super::app::ConnId;
use super::readiness::Token;

/// How many bits of a token hold the index: half of 64; on 32-bit systems 20, for a million connections.
const INDEX_BITS: u32 = if usize::BITS >= 64 { 32 } else { 20 };
const SERIAL_MASK: usize = usize::MAX >> INDEX_BITS;

impl ConnId {
    #[inline]
    pub(super) fn token(self) -> Token {
        Token((self.serial as usize & SERIAL_MASK) << INDEX_BITS | self.index as usize)
    }
}

struct Slot<T> {
    serial: u32,
    tenant: Option<T>,
}

/// A slab of `T`.
pub(super) struct Table<T> {
    slots: Vec<Slot<T>>,
    free: Vec<u32>,
    len: usize,
}

impl<T> Table<T> {
    pub(super) fn new() -> Self {
        Table { slots: Vec::new(), free: Vec::new(), len: 0 }
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// The name the next tenant will get.
    pub(super) fn vacant(&mut self) -> ConnId {
        if let Some(&index) = self.free.last() {
            return ConnId { index, serial: self.slots[index as usize].serial };
        }
        let index = u32::try_from(self.slots.len()).unwrap_or(u32::MAX - 1);
        self.slots.push(Slot { serial: 0, tenant: None });
        self.free.push(index);
        ConnId { index, serial: 0 }
    }

    /// Moves a tenant into the slot that [`Table::vacant`] named.
    pub(super) fn insert(&mut self, tenant: T) -> ConnId {
        let id = self.vacant();
        self.free.pop();
        self.slots[id.index as usize].tenant = Some(tenant);
        self.len += 1;
        id
    }

    #[inline]
    pub(super) fn get_mut(&mut self, id: ConnId) -> Option<&mut T> {
        let slot = self.slots.get_mut(id.index as usize)?;
        if slot.serial == id.serial { slot.tenant.as_mut() } else { None }
    }

    /// The tenant a token names, if it still lives there.
    #[inline]
    pub(super) fn resolve(&mut self, token: Token) -> Option<(ConnId, &mut T)> {
        let index = token.0 & (usize::MAX >> (usize::BITS - INDEX_BITS));
        let slot = self.slots.get_mut(index)?;
        let id = ConnId { index: u32::try_from(index).ok()?, serial: slot.serial };
        if id.token() == token { Some((id, slot.tenant.as_mut()?)) } else { None }
    }

    /// The tenant of a slot, whoever it is.
    pub(super) fn at(&self, index: u32) -> Option<ConnId> {
        let slot = self.slots.get(index as usize)?;
        slot.tenant.is_some().then_some(ConnId { index, serial: slot.serial })
    }

    pub(super) fn remove(&mut self, id: ConnId) -> Option<T> {
        let slot = self.slots.get_mut(id.index as usize)?;
        if slot.serial != id.serial {
            return None;
        }
        let tenant = slot.tenant.take()?;
        slot.serial = slot.serial.wrapping_add(1);
        self.free.push(id.index);
        self.len -= 1;
        Some(tenant)
    }

    /// The names of all tenants.
    pub(super) fn ids(&self) -> Vec<ConnId> {
        (0..self.slots.len()).filter_map(|index| self.at(u32::try_from(index).ok()?)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reused_slot_is_not_reached_by_its_former_name() {
        let mut table = Table::new();
        let first = table.insert('a');
        assert_eq!(table.resolve(first.token()), Some((first, &mut 'a')));
        assert_eq!(table.remove(first), Some('a'));
        let second = table.insert('b');
        assert_eq!(first.index, second.index);
        assert_eq!(table.get_mut(first), None);
        assert_eq!(table.remove(first), None);
        assert_eq!(table.resolve(first.token()), None);
        assert_eq!(table.get_mut(second), Some(&mut 'b'));
        assert_eq!(table.len(), 1);
        assert_eq!(table.ids(), [second]);
    }
}
