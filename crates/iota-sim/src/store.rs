//! The store: what was written under which name. Objects have no bytes, only what a reader would learn of them.

use std::collections::BTreeMap;

use iota_protocol::Digest;
use iota_protocol::work::{Difference, ObjectName, ObjectRef, Seal};

use crate::chance::Chance;

/// Everything that was written and is still there.
#[derive(Debug, Default)]
pub(crate) struct Store {
    objects: BTreeMap<ObjectName, Seal>,
}

impl Store {
    /// Writes an object. The first to write a name keeps it.
    pub(crate) fn put(&mut self, name: ObjectName, seal: Seal) {
        self.objects.entry(name).or_insert(seal);
    }

    /// What is wrong with an object, if something is.
    pub(crate) fn check(&self, object: &ObjectRef) -> Result<(), Difference> {
        match self.objects.get(&object.name) {
            None => Err(Difference::Missing),
            Some(seal) if *seal != object.seal => Err(Difference::Digest),
            Some(_) => Ok(()),
        }
    }

    /// Loses an object that was just written.
    pub(crate) fn lose(&mut self, name: ObjectName) {
        self.objects.remove(&name);
    }

    /// Spoils an object that was just written.
    pub(crate) fn spoil(&mut self, name: ObjectName, chance: &mut Chance) {
        if let Some(seal) = self.objects.get_mut(&name) {
            seal.digest = Digest::of(&chance.next().to_le_bytes());
        }
    }
}
