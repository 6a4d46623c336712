//! At most one leader in each term of a group (Raft paper, figure 3, "election safety"). It is fed
//! after every turn of every node, so a leader of a moment counts too.

use super::Violation;
use flotilla_types::{GroupId, ReplicaId, Term};
use std::collections::BTreeMap;

/// Who led, for the whole run and across restarts.
#[derive(Debug, Default)]
pub struct Leaders(BTreeMap<(GroupId, Term), ReplicaId>);

impl Leaders {
    /// Notes that a replica holds itself to lead; says whether that is news.
    ///
    /// # Errors
    /// If another one led in that term.
    pub fn observe(&mut self, group: GroupId, term: Term, replica: ReplicaId) -> Result<bool, Violation> {
        let mut news = false;
        let first = *self.0.entry((group, term)).or_insert_with(|| {
            news = true;
            replica
        });
        if first != replica {
            return Err(Violation::new("one leader", format!("{group}, {term}: both {first} and {replica} lead")));
        }
        Ok(news)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_leader_in_a_term_is_found() {
        let mut leaders = Leaders::default();
        assert_eq!(leaders.observe(GroupId(1), Term(1), ReplicaId(1)), Ok(true));
        assert_eq!(leaders.observe(GroupId(1), Term(1), ReplicaId(1)), Ok(false));
        assert!(leaders.observe(GroupId(1), Term(2), ReplicaId(2)).is_ok() && leaders.observe(GroupId(2), Term(1), ReplicaId(2)).is_ok());
        assert!(leaders.observe(GroupId(1), Term(1), ReplicaId(2)).is_err());
    }
}
