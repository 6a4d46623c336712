//! Socket options: a peer that is cut off must be noticed within three seconds, in either direction.

use socket2::{SockRef, TcpKeepalive};
use std::io;
use std::net::SocketAddr;
use std::time::Duration;
use tokio::net::{TcpListener, TcpSocket, TcpStream};

/// Unacknowledged bytes may be this old before the connection counts as broken.
const UNACKNOWLEDGED_TIME_MAX: Duration = Duration::from_millis(2500);
/// A silent connection is probed after this.
const PROBE_AFTER: Duration = Duration::from_secs(1);
const PROBE_INTERVAL: Duration = Duration::from_secs(1);
const PROBE_COUNT: u32 = 2;
/// What the kernel takes beyond what is on its way: a heartbeat can overtake large messages only before they are there.
#[cfg(target_os = "linux")]
const UNSENT_BYTES_MAX: u32 = 512 << 10;
const BACKLOG: u32 = 1024;

/// Listens on `address`. A port that a process just left can be taken again at once.
///
/// # Errors
/// If the address is in use or not this machine's; the error does not name it.
pub fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// Sets what every connection between nodes has.
pub(super) fn tune(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let socket = SockRef::from(stream);
    let keepalive = TcpKeepalive::new().with_time(PROBE_AFTER).with_interval(PROBE_INTERVAL).with_retries(PROBE_COUNT);
    socket.set_tcp_keepalive(&keepalive)?;
    #[cfg(target_os = "linux")]
    {
        socket.set_tcp_user_timeout(Some(UNACKNOWLEDGED_TIME_MAX))?;
        socket.set_tcp_notsent_lowat(UNSENT_BYTES_MAX)?;
    }
    Ok(())
}
