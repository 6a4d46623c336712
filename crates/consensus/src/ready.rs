//! What a group wants done, and in which order.

use crate::message::Message;
use crate::snapshot::SnapshotMeta;
use flotilla_types::{Entry, HardState};

/// One batch of work of a group. Its parts in order:
/// 1. `send_now` may go out at once, also before earlier `Ready`s are on disk.
/// 2. `snapshot` (installed, decision 8), `entries` and `hard_state` go to disk, after those of all
///    earlier `Ready`s. `entries` replace what the log held at their first index and after.
/// 3. Then [`crate::Group::on_persisted`] is called and `send_when_persisted` goes out.
/// 4. `committed` may be applied at once, in order: each of these entries is on this disk already.
///    A `Membership` entry is given to [`crate::Group::apply_membership`] when it is met.
///
/// With nothing for the disk (`needs_log` is false) step 3 may be taken as soon as all earlier
/// `Ready`s have taken it.
#[derive(Debug)]
pub struct Ready {
    /// Rises by one with each `Ready` of the group.
    pub number: u64,
    /// To be written with the entries. Changes of the commit mark alone come with the next change
    /// that must be written anyway: the mark is a hint.
    pub hard_state: Option<HardState>,
    /// To be written.
    pub entries: Vec<Entry>,
    /// To be installed before anything else of this `Ready`.
    pub snapshot: Option<SnapshotMeta>,
    /// Messages that promise nothing that is not on disk.
    pub send_now: Vec<Message>,
    /// Messages that may go out only once this `Ready`, and so every one before it, is on disk.
    pub send_when_persisted: Vec<Message>,
    /// Entries to apply.
    pub committed: Vec<Entry>,
    /// Whether there is anything to write.
    pub needs_log: bool,
    /// Whether what is written must be synced before it counts; so far whenever `needs_log`.
    pub must_sync: bool,
}
