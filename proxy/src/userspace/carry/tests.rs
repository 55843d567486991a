//! Connections on loopback, carried: every byte, ends one way at a time, resets, slow readers.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

use super::*;
use crate::userspace::dial;

/// By when what is bound to happen has happened, on a starved machine.
const SOON: Duration = Duration::from_secs(30);

async fn soon<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(SOON, what).await.expect("in time")
}

async fn pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let to = listener.local_addr().unwrap();
    let (one, other) = tokio::join!(TcpStream::connect(to), listener.accept());
    (one.unwrap(), other.unwrap().0)
}

/// A client and an endpoint, and who carries between them.
struct Carried {
    client: TcpStream,
    endpoint: TcpStream,
    meter: Arc<Meter>,
    carrier: JoinHandle<io::Result<()>>,
}

async fn carried() -> Carried {
    carrying(pair().await, pair().await)
}

fn carrying(
    (client, mut near): (TcpStream, TcpStream),
    (mut far, endpoint): (TcpStream, TcpStream),
) -> Carried {
    let meter = Arc::new(Meter::default());
    let counting = meter.clone();
    let carrier = tokio::spawn(async move {
        for stream in [&near, &far] {
            dial::prepare(stream.into()).unwrap();
        }
        let result = carry(&mut near, &mut far, &counting).await;
        if result.is_ok() {
            dial::finished(&near);
            dial::finished(&far);
        }
        result
    });
    Carried { client, endpoint, meter, carrier }
}

/// Bytes that show what is missing and what is out of order.
fn bytes(count: usize) -> Vec<u8> {
    (0..count.div_ceil(4)).flat_map(|word| (word as u32).to_be_bytes()).take(count).collect()
}

fn reset(stream: TcpStream) {
    SockRef::from(&stream).set_linger(Some(Duration::ZERO)).unwrap();
}

async fn read_all(stream: &mut TcpStream) -> Vec<u8> {
    let mut read = Vec::new();
    soon(stream.read_to_end(&mut read)).await.unwrap();
    read
}

#[tokio::test]
async fn every_byte_arrives_in_order_both_ways_at_once() {
    for count in [1, PIECE - 1, PIECE, PIECE + 1, 3 * MOST + 7, 20_000_000] {
        let Carried { client, endpoint, meter, carrier } = carried().await;
        let sent = Arc::new(bytes(count));
        let talk = |stream: TcpStream| {
            let sent = sent.clone();
            tokio::spawn(async move {
                let (mut read, mut write) = stream.into_split();
                let writing = tokio::spawn(async move { write.write_all(&sent).await });
                let mut all = Vec::new();
                read.read_to_end(&mut all).await.unwrap();
                writing.await.unwrap().unwrap();
                all
            })
        };
        let (there, here) = (talk(client), talk(endpoint));
        assert!(soon(there).await.unwrap() == *sent, "{count} bytes back");
        assert!(soon(here).await.unwrap() == *sent, "{count} bytes forth");
        soon(carrier).await.unwrap().unwrap();
        assert_eq!(meter.forth.load(Ordering::Relaxed), count as u64);
        assert_eq!(meter.back.load(Ordering::Relaxed), count as u64);
    }
}

#[tokio::test]
async fn who_has_said_all_still_hears_the_answer() {
    let Carried { mut client, mut endpoint, carrier, .. } = carried().await;
    client.write_all(b"question").await.unwrap();
    client.shutdown().await.unwrap();
    assert_eq!(read_all(&mut endpoint).await, b"question");
    assert!(!carrier.is_finished(), "the other way is open");
    let answer = bytes(1_000_000);
    let (written, read) = tokio::join!(
        async {
            endpoint.write_all(&answer).await.unwrap();
            endpoint.shutdown().await
        },
        read_all(&mut client)
    );
    written.unwrap();
    assert!(read == answer);
    soon(carrier).await.unwrap().unwrap();
}

#[tokio::test]
async fn an_endpoint_may_be_the_first_to_have_said_all() {
    let Carried { mut client, mut endpoint, carrier, .. } = carried().await;
    endpoint.write_all(b"greeting").await.unwrap();
    endpoint.shutdown().await.unwrap();
    assert_eq!(read_all(&mut client).await, b"greeting");
    client.write_all(b"thanks").await.unwrap();
    client.shutdown().await.unwrap();
    assert_eq!(read_all(&mut endpoint).await, b"thanks");
    soon(carrier).await.unwrap().unwrap();
}

#[tokio::test]
async fn a_reset_is_passed_on_as_a_reset() {
    for by_client in [true, false] {
        let Carried { client, endpoint, carrier, .. } = carried().await;
        let (breaker, mut other) = if by_client { (client, endpoint) } else { (endpoint, client) };
        reset(breaker);
        let read = soon(other.read(&mut [0; 1])).await;
        assert_eq!(read.unwrap_err().kind(), io::ErrorKind::ConnectionReset, "by client: {by_client}");
        soon(carrier).await.unwrap().unwrap_err();
    }
}

/// Half of it has ended well before the reset comes.
#[tokio::test]
async fn a_reset_after_a_half_close_is_one_too() {
    let Carried { mut client, mut endpoint, carrier, .. } = carried().await;
    client.shutdown().await.unwrap();
    assert_eq!(read_all(&mut endpoint).await, b"");
    reset(endpoint);
    let read = soon(client.read(&mut [0; 1])).await;
    assert_eq!(read.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
    soon(carrier).await.unwrap().unwrap_err();
}

/// A reader that stops holds up its own sender and nobody else, and gets everything in the end.
#[tokio::test]
async fn a_slow_reader_holds_up_its_own_sender_only() {
    let (near, far) = (pair().await, pair().await);
    // Else the kernel makes them as large as `net.ipv4.tcp_rmem` lets it.
    for reader in [&near.1, &far.1] {
        SockRef::from(reader).set_recv_buffer_size(64 * 1024).unwrap();
    }
    let mut slow = carrying(near, far);
    let sent = bytes(30_000_000);
    let writing = {
        let sent = sent.clone();
        let (read, mut write) = slow.client.into_split();
        tokio::spawn(async move {
            write.write_all(&sent).await.unwrap();
            (read, write)
        })
    };
    // On the same thread, while the first one stands still.
    for _ in 0..3 {
        let Carried { mut client, mut endpoint, .. } = carried().await;
        let (written, read) = tokio::join!(
            async {
                client.write_all(&sent).await?;
                client.shutdown().await
            },
            read_all(&mut endpoint)
        );
        written.unwrap();
        assert!(read == sent);
    }
    assert!(!writing.is_finished(), "more than the sockets hold");
    let mut read = vec![0; sent.len()];
    soon(slow.endpoint.read_exact(&mut read)).await.unwrap();
    assert!(read == sent);
    drop(soon(writing).await.unwrap());
    assert_eq!(read_all(&mut slow.endpoint).await, b"");
}

/// What is carried in bulk goes through a pipe, and that goes back to the thread when all is through.
#[tokio::test]
async fn a_silent_connection_holds_no_pipe() {
    let Carried { mut client, mut endpoint, .. } = carried().await;
    let sent = bytes(4_000_000);
    let (written, read) = tokio::join!(client.write_all(&sent), async {
        let mut read = vec![0; sent.len()];
        endpoint.read_exact(&mut read).await.map(|_| read)
    });
    written.unwrap();
    assert!(read.unwrap() == sent);
    // The carrier works on this very thread; it comes to rest once the endpoint has it all.
    let spare = || TOOLS.with_borrow(|tools| tools.pipes.len());
    soon(async {
        while spare() == 0 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    assert_eq!(spare(), 1);
}

/// Without descriptors there are no pipes; bytes are carried all the same.
#[tokio::test]
async fn a_flow_in_pieces_is_as_good() {
    let (mut client, mut near) = pair().await;
    let (mut far, mut endpoint) = pair().await;
    let sent = bytes(1_000_000);
    let carrying = async {
        let (mut from, _) = near.split();
        let mut flow = Flow::default();
        poll_fn(|cx| {
            loop {
                ready!(flow.write(&far, cx))?;
                if flow.stage != Stage::Open {
                    return Poll::Ready(io::Result::Ok(()));
                }
                ready!(flow.piece(&mut from, &far, cx))?;
            }
        })
        .await
        .unwrap();
        far.shutdown().await.unwrap();
    };
    let writing = async {
        client.write_all(&sent).await.unwrap();
        client.shutdown().await.unwrap();
    };
    let ((), (), read) = soon(async { tokio::join!(carrying, writing, read_all(&mut endpoint)) }).await;
    assert!(read == sent);
}
