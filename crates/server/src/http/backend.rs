//! What the HTTP door needs of the node behind it: a small trait, so that tests can put a fake
//! behind the door and the driver's handle can implement it without the door knowing the driver.
//!
//! Everything runs on one thread (a tokio `LocalSet`), so nothing here is `Send`.

use crate::metrics::Exposition;
use bytes::Bytes;
use flotilla_node::Location;
use flotilla_node::request::{Failure, JoinRequest, Reply, Request};
use flotilla_types::Key;
use std::future::Future;
use std::time::Duration;

/// The node behind the door.
pub trait Backend: 'static {
    /// Has the node answer a request within `timeout`. The answer always comes, also when time ran
    /// out: the door starts no timer of its own. Dropping the future forgets the answer, not the request.
    fn request(&self, request: Request, timeout: Duration) -> impl Future<Output = Reply>;

    /// What a put of the key would be refused with at this moment, as far as this node can tell without its value: a client
    /// that asks before it sends (`Expect: 100-continue`) is spared sending it.
    fn refusal_of_put(&self, _key: &Key) -> Option<Failure> {
        None
    }

    /// Tries to reach a node that wants to join where it says it is; one that is a member already may come from anywhere.
    ///
    /// # Errors
    /// With what was found there, in one line.
    fn reach(&self, join: &JoinRequest) -> impl Future<Output = Result<(), String>>;

    /// The node's name.
    fn name(&self) -> String;

    /// The cluster as this node sees it, as the contract's JSON; no I/O and nobody is asked.
    fn cluster_view(&self) -> Bytes;

    /// Where a key lives, as this node knows it; no I/O.
    fn locate(&self, key: &Key) -> Location;

    /// Whether the node can serve (`/readyz`): it knows the leaders of its shards. If not: why, in one line.
    ///
    /// # Errors
    /// With what is missing.
    fn ready(&self) -> Result<(), String>;

    /// Writes the node's own metrics (`/metrics`); the door's are added by the door.
    fn write_metrics(&self, exposition: &mut Exposition);
}
