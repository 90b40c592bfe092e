//! What every connection between nodes asks of TCP: small frames at once, and an end when the other machine or the
//! network between has vanished. TCP's own patience is minutes, and a side that only listens would never notice.

use std::io;
use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};
use tokio::net::TcpStream;

/// A connection on which something sent was not acknowledged for so long is broken, also while the other side
/// takes nothing: well above what a busy machine needs, about the time after which its node is given up.
const UNACKNOWLEDGED_MAX: Duration = Duration::from_millis(3000);
/// Silence after which TCP asks whether the other side is there.
const KEEPALIVE_AFTER: Duration = Duration::from_secs(3);
/// Between two such questions.
const KEEPALIVE_EVERY: Duration = Duration::from_secs(1);

/// Prepares a connection that was just opened or accepted.
pub(super) fn prepare(tcp: &TcpStream) -> io::Result<()> {
    tcp.set_nodelay(true)?;
    let socket = SockRef::from(tcp);
    socket.set_tcp_keepalive(&TcpKeepalive::new().with_time(KEEPALIVE_AFTER).with_interval(KEEPALIVE_EVERY))?;
    // Rules over the number of unanswered questions, too.
    #[cfg(any(target_os = "linux", target_os = "android"))]
    socket.set_tcp_user_timeout(Some(UNACKNOWLEDGED_MAX))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    #[tokio::test]
    async fn both_ends_notice_that_the_other_has_vanished() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let dialed = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (accepted, _) = listener.accept().await.unwrap();
        for tcp in [dialed, accepted] {
            prepare(&tcp).unwrap();
            let socket = SockRef::from(&tcp);
            assert!(tcp.nodelay().unwrap() && socket.keepalive().unwrap());
            #[cfg(target_os = "linux")]
            assert_eq!(socket.tcp_user_timeout().unwrap(), Some(UNACKNOWLEDGED_MAX));
        }
    }
}
