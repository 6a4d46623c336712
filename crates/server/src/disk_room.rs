//! How much room there is on the file system of the data-dir: below a reserve, writes that need more of it
//! are refused while there is still enough for deletes, for merging tables and for starting again.
#![allow(unsafe_code, reason = "the room on a file system has no safe face in std")]

use std::ffi::CString;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// Kept free: two segments of the log, and memtables on their way to disk. Of a small file system an eighth.
const RESERVE_BYTES: u64 = 256 << 20;

/// Watches one file system.
#[derive(Debug)]
pub(crate) struct DiskRoom {
    path: CString,
    is_low: bool,
    found: Option<Room>,
}

/// What a file system was found to have.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Room {
    /// Bytes that this process may still write.
    pub(crate) free: u64,
    /// Bytes in all.
    pub(crate) total: u64,
    /// Whether so little is free that writes are refused.
    pub(crate) is_low: bool,
}

impl DiskRoom {
    /// Of the file system that `path` lies on; enough room is assumed until it is looked at.
    pub(crate) fn of(path: &Path) -> DiskRoom {
        let path = CString::new(path.as_os_str().as_bytes()).expect("a path that was opened has no zero in it");
        DiskRoom { path, is_low: false, found: None }
    }

    /// Looks; gives whether room is low if that has changed.
    pub(crate) fn look(&mut self) -> Option<bool> {
        // A file system that cannot say is taken to have room; writing to it will tell.
        let (free, total) = self.measure()?;
        let is_low = is_low(free, total, self.is_low);
        let has_changed = is_low != self.is_low;
        self.is_low = is_low;
        self.found = Some(Room { free, total, is_low });
        has_changed.then_some(is_low)
    }

    /// What was found last.
    pub(crate) fn found(&self) -> Option<Room> {
        self.found
    }

    /// Bytes free for us, and in all.
    fn measure(&self) -> Option<(u64, u64)> {
        let mut found = std::mem::MaybeUninit::<libc::statvfs>::uninit();
        // SAFETY: the path ends in a zero, and the call fills in the struct if it says so.
        let known = unsafe { libc::statvfs(self.path.as_ptr(), found.as_mut_ptr()) } == 0;
        // SAFETY: it was filled in.
        let found = known.then(|| unsafe { found.assume_init() })?;
        Some((found.f_bavail * found.f_frsize, found.f_blocks * found.f_frsize))
    }
}

/// Once low, it stays so until a little more than the reserve is free.
fn is_low(free: u64, total: u64, was_low: bool) -> bool {
    let reserve = RESERVE_BYTES.min(total / 8);
    free < if was_low { reserve + reserve / 8 } else { reserve }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn low_below_the_reserve_until_there_is_more_than_it() {
        const MIB: u64 = 1 << 20;
        let large = 100 << 30;
        assert!(!is_low(256 * MIB, large, false) && is_low(255 * MIB, large, false));
        assert!(is_low(280 * MIB, large, true) && !is_low(288 * MIB, large, true));
        assert!(!is_low(32 * MIB, 256 * MIB, false) && is_low(31 * MIB, 256 * MIB, false));
    }

    #[test]
    fn a_real_file_system_has_room_and_says_so_once() {
        let room = DiskRoom::of(&std::env::temp_dir());
        let (free, total) = room.measure().expect("a folder that is there");
        assert!(free <= total && total > 0);
        let mut absent = DiskRoom::of(Path::new("/no/such/folder"));
        assert_eq!(absent.look(), None);
    }
}
