//! Reading and writing our own bytes: fixed-width little-endian integers, and byte strings with a
//! u32 length before them. Every format of `docs/formats.md` is built from these.
//!
//! Reading never panics and never allocates by a length it has not checked: bytes from a disk or a
//! peer may be anything.

use bytes::{Buf, BufMut, Bytes, BytesMut};

/// Why bytes could not be decoded.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// The bytes end too early.
    #[error("the bytes end in the middle of {0}")]
    Short(&'static str),
    /// A field holds what it must not.
    #[error("{0} holds {1}, which is no such thing")]
    Invalid(&'static str, u64),
    /// There is something behind the end.
    #[error("{0} bytes are left over behind the end")]
    Trailing(usize),
}

/// Takes values off the front of shared bytes; byte strings come out as slices of the same memory.
#[derive(Clone, Debug)]
pub struct Reader(Bytes);

impl Reader {
    /// Reads from the front of `bytes`.
    pub fn new(bytes: Bytes) -> Reader {
        Reader(bytes)
    }

    /// How many bytes are left.
    pub fn remaining(&self) -> usize {
        self.0.len()
    }

    fn need(&self, count: usize, what: &'static str) -> Result<(), DecodeError> {
        if self.0.len() < count { Err(DecodeError::Short(what)) } else { Ok(()) }
    }

    /// One byte.
    ///
    /// # Errors
    /// If the bytes end; likewise for all that follow.
    pub fn u8(&mut self, what: &'static str) -> Result<u8, DecodeError> {
        self.need(1, what)?;
        Ok(self.0.get_u8())
    }

    /// Two bytes.
    pub fn u16(&mut self, what: &'static str) -> Result<u16, DecodeError> {
        self.need(2, what)?;
        Ok(self.0.get_u16_le())
    }

    /// Four bytes.
    pub fn u32(&mut self, what: &'static str) -> Result<u32, DecodeError> {
        self.need(4, what)?;
        Ok(self.0.get_u32_le())
    }

    /// Eight bytes.
    pub fn u64(&mut self, what: &'static str) -> Result<u64, DecodeError> {
        self.need(8, what)?;
        Ok(self.0.get_u64_le())
    }

    /// Sixteen bytes.
    pub fn u128(&mut self, what: &'static str) -> Result<u128, DecodeError> {
        self.need(16, what)?;
        Ok(self.0.get_u128_le())
    }

    /// A bool: 0 or 1.
    pub fn bool(&mut self, what: &'static str) -> Result<bool, DecodeError> {
        match self.u8(what)? {
            0 => Ok(false),
            1 => Ok(true),
            other => Err(DecodeError::Invalid(what, u64::from(other))),
        }
    }

    /// A byte string with its u32 length before it.
    pub fn bytes(&mut self, what: &'static str) -> Result<Bytes, DecodeError> {
        let length = self.u32(what)? as usize;
        self.need(length, what)?;
        Ok(self.0.split_to(length))
    }

    /// A count of things of which each takes at least `bytes_each` bytes, so that a wrong count is
    /// caught before anything is allocated by it.
    pub fn count(&mut self, bytes_each: usize, what: &'static str) -> Result<usize, DecodeError> {
        let count = self.u32(what)? as usize;
        self.need(count.saturating_mul(bytes_each.max(1)), what)?;
        Ok(count)
    }

    /// All that is left.
    pub fn rest(self) -> Bytes {
        self.0
    }

    /// Says that nothing may be left.
    ///
    /// # Errors
    /// If something is.
    pub fn finish(self) -> Result<(), DecodeError> {
        if self.0.is_empty() { Ok(()) } else { Err(DecodeError::Trailing(self.0.len())) }
    }
}

/// Appends values to a buffer; the counterpart of [`Reader`].
pub trait Write: BufMut {
    /// Appends a bool as 0 or 1.
    fn write_bool(&mut self, value: bool) {
        self.put_u8(u8::from(value));
    }

    /// Appends a byte string with its u32 length before it.
    ///
    /// # Panics
    /// If it is 4 GiB or longer; all that we write is bounded far below.
    fn write_bytes(&mut self, bytes: &[u8]) {
        self.put_u32_le(u32::try_from(bytes.len()).expect("every byte string we write is bounded below 4 GiB"));
        self.put_slice(bytes);
    }
}

impl Write for BytesMut {}
impl Write for Vec<u8> {}
