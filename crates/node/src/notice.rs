//! What a node has to say to an operator: one line an event, with the ids that it is about.

use flotilla_types::{GroupId, ReplicaKey};

/// A line for the traces.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Notice {
    /// How much it matters.
    pub level: NoticeLevel,
    /// What happened, in words.
    pub line: String,
    /// The group it is about.
    pub group: Option<GroupId>,
    /// The replica it is about.
    pub replica: Option<ReplicaKey>,
    /// The name of the other node it is about.
    pub peer: Option<String>,
}

/// How much a line matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum NoticeLevel {
    /// Of use to whoever looks for the cause of something.
    Debug,
    /// An operator may want to know. Nothing of this kind is said while nothing changes.
    Info,
    /// A person should look at it.
    Warning,
    /// A person must look.
    Error,
}

impl Notice {
    fn new(level: NoticeLevel, line: impl Into<String>) -> Notice {
        Notice { level, line: line.into(), group: None, replica: None, peer: None }
    }

    /// See [`NoticeLevel::Debug`].
    pub fn debug(line: impl Into<String>) -> Notice {
        Notice::new(NoticeLevel::Debug, line)
    }

    /// See [`NoticeLevel::Info`].
    pub fn info(line: impl Into<String>) -> Notice {
        Notice::new(NoticeLevel::Info, line)
    }

    /// See [`NoticeLevel::Warning`].
    pub fn warning(line: impl Into<String>) -> Notice {
        Notice::new(NoticeLevel::Warning, line)
    }

    /// See [`NoticeLevel::Error`].
    pub fn error(line: impl Into<String>) -> Notice {
        Notice::new(NoticeLevel::Error, line)
    }

    /// It is about this group.
    pub fn of_group(self, group: GroupId) -> Notice {
        Notice { group: Some(group), ..self }
    }

    /// It is about this replica.
    pub fn of_replica(self, replica: ReplicaKey) -> Notice {
        Notice { group: Some(replica.group), replica: Some(replica), ..self }
    }

    /// It is about the node of this name.
    pub fn of_peer(self, name: impl Into<String>) -> Notice {
        Notice { peer: Some(name.into()), ..self }
    }
}
