//! Point reads, on any thread, while the apply thread writes.
//!
//! Every read goes through a view, which costs nothing that can be measured. So an overwrite under way
//! does not mix the chunks of two values; and a read never sees a batch before it is whole, as the
//! store's plain `get` may, after which a scan through a view would seem to go back in time.
//!
//! The generation must be the one in force: rows of a former one are swept. A read that is overtaken by
//! an install or by the replica's end finds rows missing, so whoever finds none asks [`is_in_force`].

use super::expiry::is_expired;
use super::generation::decode_state;
use super::rows::{KeyHead, chunk_rest};
use bytes::{Bytes, BytesMut};
use flotilla_storage::store::layout::{self, Filing, GENERATION_PREFIX_BYTES, RowKind};
use flotilla_storage::store::{StateStore, StoreError, StoreView};
use flotilla_types::{Key, ReplicaKey, Timestamp, Version};

/// Why a key could not be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The store failed, or a row is damaged.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// A key's present version and value; `None` if it is absent.
///
/// # Errors
/// If the store fails or a row is damaged.
pub fn get<S: StateStore>(store: &S, replica: ReplicaKey, filing: Filing, key: &Key) -> Result<Option<(Version, Bytes)>, ReadError> {
    let row_key = layout::key_row(filing.under, filing.generation, key.as_bytes());
    let view = store.view()?;
    match decode(&row_key, view.get(&row_key)?)? {
        None => Ok(None),
        Some((head, _)) if is_expired(&view, replica, &head)? => Ok(None),
        Some((head, value)) if head.chunks == 0 => Ok(Some((head.version, value))),
        Some((head, _)) => Ok(Some((head.version, read_chunks(&view, filing, key, head)?))),
    }
}

/// Whether a generation of a replica's rows is in force. Asked after a read that found nothing: if it
/// is, none of its rows had been swept before.
///
/// # Errors
/// If the store fails or the replica's state is damaged.
pub fn is_in_force<S: StateStore>(store: &S, replica: ReplicaKey, generation: u32) -> Result<bool, ReadError> {
    Ok(clock_in_force(&store.view()?, replica, generation)?.is_some())
}

/// The shard's clock in a view, if this generation of a replica's rows is in force there: then all of its rows
/// are in it.
pub(super) fn clock_in_force<V: StoreView>(view: &V, replica: ReplicaKey, generation: u32) -> Result<Option<Timestamp>, StoreError> {
    let key = layout::state_key(replica);
    let Some(row) = view.get(&key)? else { return Ok(None) };
    let state = decode_state(&key, &row).map_err(StoreError::Damaged)?;
    Ok((state.generation == generation).then_some(state.clock))
}

/// A key's present version and the length of its value; `None` if it is absent.
///
/// # Errors
/// If the store fails or the row is damaged.
pub fn head<S: StateStore>(store: &S, replica: ReplicaKey, filing: Filing, key: &Key) -> Result<Option<(Version, u64)>, ReadError> {
    let row_key = layout::key_row(filing.under, filing.generation, key.as_bytes());
    let view = store.view()?;
    match decode(&row_key, view.get(&row_key)?)? {
        Some((head, _)) if !is_expired(&view, replica, &head)? => Ok(Some((head.version, u64::from(head.value_bytes)))),
        _ => Ok(None),
    }
}

fn decode(row_key: &[u8], row: Option<Bytes>) -> Result<Option<(KeyHead, Bytes)>, StoreError> {
    row.map(|row| KeyHead::decode(&row_key[GENERATION_PREFIX_BYTES..], row)).transpose()
}

pub(super) fn read_chunks<V: StoreView>(
    view: &V,
    Filing { under, generation }: Filing,
    key: &Key,
    head: KeyHead,
) -> Result<Bytes, StoreError> {
    let damaged = |what: String| StoreError::Damaged(format!("the value of key \"{key}\" of {under} {what}"));
    let mut value = BytesMut::with_capacity(head.value_bytes as usize);
    for number in 0..head.chunks {
        let row_key = layout::data_row(under, generation, RowKind::Chunk, &chunk_rest(key, number));
        let row = view.get(&row_key)?.ok_or_else(|| damaged(format!("lacks chunk {number} of {}", head.chunks)))?;
        let body = layout::verify(&row_key[GENERATION_PREFIX_BYTES..], &row)?;
        let Some((version, piece)) = body.split_first_chunk::<8>() else {
            return Err(damaged(format!("has no version in chunk {number}")));
        };
        if u64::from_le_bytes(*version) != head.version.0 {
            return Err(damaged(format!("has chunk {number} of another version")));
        }
        value.extend_from_slice(piece);
    }
    if value.len() != head.value_bytes as usize {
        return Err(damaged(format!("has {} bytes, not {}", value.len(), head.value_bytes)));
    }
    Ok(value.freeze())
}
