//! The node's handle as what the HTTP door needs.

use crate::handle::NodeHandle;
use crate::http::Backend;
use crate::metrics::{Exposition, write_node_metrics};
use bytes::Bytes;
use flotilla_node::Location;
use flotilla_node::request::{Failure, JoinRequest, Reply, Request};
use flotilla_types::Key;
use std::time::Duration;

impl Backend for NodeHandle {
    async fn request(&self, request: Request, timeout: Duration) -> Reply {
        NodeHandle::request(self, request, timeout).await
    }

    fn refusal_of_put(&self, key: &Key) -> Option<Failure> {
        self.with_node(|node| node.refusal_of_put(key))
    }

    async fn reach(&self, join: &JoinRequest) -> Result<(), String> {
        if self.with_node(|node| node.control().nodes.contains_key(&join.id)) {
            return Ok(());
        }
        let found = self.0.links.reach(join.id, &join.peer, &join.http).await;
        found.map_err(|found| {
            format!("{} does not reach {} at {found}; name an address that all other nodes reach", Backend::name(self), join.name)
        })
    }

    fn name(&self) -> String {
        self.with_node(|node| node.name_of(node.id()))
    }

    fn cluster_view(&self) -> Bytes {
        let now = self.0.clock.now();
        self.with_node(|node| node.cluster_status(now).to_json())
    }

    fn locate(&self, key: &Key) -> Location {
        self.with_node(|node| node.locate(key))
    }

    fn ready(&self) -> Result<(), String> {
        if self.with_node(|node| node.is_ready()) {
            return Ok(());
        }
        Err("this node does not know the leaders of all shards: it has just started, is shutting down, or a quorum is missing".to_owned())
    }

    fn write_metrics(&self, exposition: &mut Exposition) {
        write_node_metrics(self, exposition);
    }
}
