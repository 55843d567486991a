//! Carries bytes between a client and an endpoint, both ways, until both have said all they had to say.
//!
//! What arrives in small pieces is read and written: two system calls for a piece. What arrives faster
//! than that is moved through a pipe, which copies nothing. Buffer and pipes belong to the thread and
//! not to the connection, so a connection that says nothing holds no memory but its sockets'; one that
//! waits for a slow reader holds what that has not taken yet, at most [`MOST`] in each direction.

use std::cell::RefCell;
use std::future::poll_fn;
use std::io;
use std::net::Shutdown;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};

use socket2::SockRef;
use tokio::io::{AsyncRead as _, Interest, ReadBuf};
use tokio::net::TcpStream;
use tokio::net::tcp::ReadHalf;
use weft_kernel::pipe::Pipe;

/// What is read at once. A piece that fills it is taken for a part of something large.
const PIECE: usize = 16 * 1024;
/// The most that is moved into a pipe at once.
const MOST: usize = 512 * 1024;
/// How large pipes are. A pipe holds as many pieces of packets as it has pages, full ones or not, so it
/// takes 1448 bytes a page over a network of MTU 1500. More than that asks for `fs.pipe-max-size`.
const PIPE: usize = 1024 * 1024;
/// So often a direction goes on before it lets others have the thread.
const ROUNDS: usize = 4;
/// So many pipes a thread keeps for the next who needs one.
const SPARE: usize = 64;

/// How many bytes went which way.
#[derive(Debug, Default)]
pub(super) struct Meter {
    /// From clients to endpoints.
    pub(super) forth: AtomicU64,
    /// From endpoints to clients.
    pub(super) back: AtomicU64,
}

/// A direction.
#[derive(Debug, Default)]
struct Flow {
    stage: Stage,
    rest: Rest,
    /// Bytes come faster than in pieces.
    bulk: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Stage {
    #[default]
    Open,
    /// The one has said all; the other is not told yet.
    Ending,
    Over,
}

/// What was read, and not yet written.
#[derive(Debug, Default)]
enum Rest {
    #[default]
    None,
    Bytes(Box<[u8]>),
    /// It is not empty.
    Pipe(Pipe),
}

/// What a thread has for whatever connection it works on.
struct Tools {
    piece: Box<[u8]>,
    pipes: Vec<Pipe>,
}

thread_local! {
    static TOOLS: RefCell<Tools> =
        RefCell::new(Tools { piece: vec![0; PIECE].into_boxed_slice(), pipes: Vec::new() });
}

/// Goes on until both directions have ended, each when its sender has closed it and not before.
///
/// # Errors
/// When one of the two broke off. Who is left is to be told by a reset, which is how sockets that were
/// prepared ([`super::dial::prepare`]) end when they are dropped.
pub(super) async fn carry(client: &mut TcpStream, endpoint: &mut TcpStream, meter: &Meter) -> io::Result<()> {
    let (mut forth, mut back) = (Flow::default(), Flow::default());
    let ((mut from_client, to_client), (mut from_endpoint, to_endpoint)) = (client.split(), endpoint.split());
    poll_fn(|cx| {
        let one = forth.poll(&mut from_client, to_endpoint.as_ref(), &meter.forth, cx)?;
        let other = back.poll(&mut from_endpoint, to_client.as_ref(), &meter.back, cx)?;
        match (one, other) {
            (Poll::Ready(()), Poll::Ready(())) => Poll::Ready(Ok(())),
            _ => Poll::Pending,
        }
    })
    .await
}

impl Flow {
    fn poll(
        &mut self,
        from: &mut ReadHalf<'_>,
        to: &TcpStream,
        moved: &AtomicU64,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<()>> {
        for _ in 0..ROUNDS {
            ready!(self.write(to, cx))?;
            match self.stage {
                Stage::Open => {
                    let count = ready!(self.read(from, to, cx))?;
                    moved.fetch_add(count as u64, Ordering::Relaxed);
                }
                Stage::Ending => {
                    match SockRef::from(to).shutdown(Shutdown::Write) {
                        Ok(()) => {}
                        // It has gone already, which its own direction tells.
                        Err(error) if error.kind() == io::ErrorKind::NotConnected => {}
                        Err(error) => return Poll::Ready(Err(error)),
                    }
                    self.stage = Stage::Over;
                }
                Stage::Over => return Poll::Ready(Ok(())),
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// Writes all that was read.
    fn write(&mut self, to: &TcpStream, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            let written = match &mut self.rest {
                Rest::None => return Poll::Ready(Ok(())),
                Rest::Bytes(bytes) => to.try_write(bytes),
                Rest::Pipe(pipe) => to.try_io(Interest::WRITABLE, || pipe.drain(to)),
            };
            match written {
                Ok(written) => {
                    self.rest = match std::mem::take(&mut self.rest) {
                        Rest::Bytes(bytes) if written < bytes.len() => Rest::Bytes(bytes[written..].into()),
                        Rest::Pipe(pipe) if pipe.held() > 0 => Rest::Pipe(pipe),
                        Rest::Pipe(pipe) => {
                            spare(pipe);
                            Rest::None
                        }
                        _ => Rest::None,
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => ready!(to.poll_write_ready(cx))?,
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }

    /// Reads once, with nothing left to write; says how much.
    fn read(
        &mut self,
        from: &mut ReadHalf<'_>,
        to: &TcpStream,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<usize>> {
        if self.bulk {
            // Without a descriptor for a pipe it goes on in pieces.
            if let Ok(pipe) = empty_pipe() {
                return self.fill(pipe, from.as_ref(), cx);
            }
        }
        self.piece(from, to, cx)
    }

    fn fill(&mut self, mut pipe: Pipe, from: &TcpStream, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let end = loop {
            match from.poll_read_ready(cx) {
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(error)) => break Poll::Ready(Err(error)),
                Poll::Pending => break Poll::Pending,
            }
            match from.try_io(Interest::READABLE, || pipe.fill(from, MOST)) {
                Ok(0) => {
                    self.stage = Stage::Ending;
                    break Poll::Ready(Ok(0));
                }
                Ok(count) => {
                    self.bulk = count >= PIECE;
                    self.rest = Rest::Pipe(pipe);
                    return Poll::Ready(Ok(count));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => break Poll::Ready(Err(error)),
            }
        };
        spare(pipe);
        end
    }

    /// What the endpoint does not take at once is kept for it.
    fn piece(
        &mut self,
        from: &mut ReadHalf<'_>,
        to: &TcpStream,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<usize>> {
        TOOLS.with_borrow_mut(|tools| {
            let mut read = ReadBuf::new(&mut tools.piece);
            ready!(Pin::new(from).poll_read(cx, &mut read))?;
            let read = read.filled();
            if read.is_empty() {
                self.stage = Stage::Ending;
                return Poll::Ready(Ok(0));
            }
            self.bulk = read.len() == PIECE;
            let written = match to.try_write(read) {
                Ok(written) => written,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => 0,
                Err(error) => return Poll::Ready(Err(error)),
            };
            if written < read.len() {
                self.rest = Rest::Bytes(read[written..].into());
            }
            Poll::Ready(Ok(read.len()))
        })
    }
}

fn empty_pipe() -> io::Result<Pipe> {
    TOOLS.with_borrow_mut(|tools| tools.pipes.pop()).map_or_else(|| Pipe::new(PIPE), Ok)
}

/// Takes back an empty pipe.
fn spare(pipe: Pipe) {
    TOOLS.with_borrow_mut(|tools| {
        if tools.pipes.len() < SPARE {
            tools.pipes.push(pipe);
        }
    });
}

#[cfg(test)]
mod tests;
