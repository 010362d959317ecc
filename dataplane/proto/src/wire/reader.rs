//! Taking little-endian fields off a slice, and putting them on a vector.

use super::{Epoch, Malformed, Region};
use crate::ids::{InvocationId, ObjectKey, RunId};
use alloc::vec::Vec;

/// Takes fields off the front of a body.
pub(super) struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Reader { rest: bytes }
    }

    pub(super) fn take(&mut self, bytes: usize, what: &'static str) -> Result<&'a [u8], Malformed> {
        let (front, rest) = self.rest.split_at_checked(bytes).ok_or(Malformed::Short { what })?;
        self.rest = rest;
        Ok(front)
    }

    pub(super) fn array<const N: usize>(&mut self, what: &'static str) -> Result<[u8; N], Malformed> {
        let (front, rest) = self.rest.split_first_chunk::<N>().ok_or(Malformed::Short { what })?;
        self.rest = rest;
        Ok(*front)
    }

    pub(super) fn u8(&mut self, what: &'static str) -> Result<u8, Malformed> {
        Ok(u8::from_le_bytes(self.array(what)?))
    }

    pub(super) fn u16(&mut self, what: &'static str) -> Result<u16, Malformed> {
        Ok(u16::from_le_bytes(self.array(what)?))
    }

    pub(super) fn u32(&mut self, what: &'static str) -> Result<u32, Malformed> {
        Ok(u32::from_le_bytes(self.array(what)?))
    }

    pub(super) fn u64(&mut self, what: &'static str) -> Result<u64, Malformed> {
        Ok(u64::from_le_bytes(self.array(what)?))
    }

    pub(super) fn region(&mut self) -> Result<Region, Malformed> {
        Ok(Region {
            id: self.u32("region id")?,
            generation: self.u32("region generation")?,
            epoch: Epoch(self.u64("region epoch")?),
            bytes: self.u64("region length")?,
        })
    }

    pub(super) fn key(&mut self) -> Result<ObjectKey, Malformed> {
        Ok(ObjectKey {
            run: RunId(self.u64("run")?),
            invocation: InvocationId { step: self.u32("step")?, item: self.u32("invocation item")? },
            port: self.u16("port")?,
            item: self.u32("item")?,
        })
    }

    pub(super) fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    /// Refuses bytes after the last field.
    pub(super) fn end(self) -> Result<(), Malformed> {
        match self.rest.len() {
            0 => Ok(()),
            bytes => Err(Malformed::Trailing { bytes }),
        }
    }
}

/// Appends fields; the mirror image of [`Reader`].
pub(super) trait Put {
    fn put_u16(&mut self, value: u16);
    fn put_u32(&mut self, value: u32);
    fn put_u64(&mut self, value: u64);
    fn put_region(&mut self, region: &Region);
    fn put_key(&mut self, key: &ObjectKey);
}

impl Put for Vec<u8> {
    fn put_u16(&mut self, value: u16) {
        self.extend_from_slice(&value.to_le_bytes());
    }
    fn put_u32(&mut self, value: u32) {
        self.extend_from_slice(&value.to_le_bytes());
    }
    fn put_u64(&mut self, value: u64) {
        self.extend_from_slice(&value.to_le_bytes());
    }
    fn put_region(&mut self, region: &Region) {
        self.put_u32(region.id);
        self.put_u32(region.generation);
        self.put_u64(region.epoch.0);
        self.put_u64(region.bytes);
    }
    fn put_key(&mut self, key: &ObjectKey) {
        self.put_u64(key.run.0);
        self.put_u32(key.invocation.step);
        self.put_u32(key.invocation.item);
        self.put_u16(key.port);
        self.put_u32(key.item);
    }
}
