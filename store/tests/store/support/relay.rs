//! A TCP relay between a store and etcd that can be cut, frozen, or made to swallow the answers.

use std::sync::Arc;

use tokio::io::{copy, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::etcd::own_address;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    /// Bytes flow.
    Open,
    /// Connections are closed, new ones at once.
    Cut,
    /// Connections stay open and say nothing, new ones too.
    Frozen,
    /// What is said on connections from before still arrives, but no answer comes back. New ones are
    /// as open.
    Deaf,
}

pub(crate) struct Relay {
    mode: Arc<watch::Sender<Mode>>,
    address: String,
    task: JoinHandle<()>,
}

impl Relay {
    /// Relays to an etcd at `host`.
    pub(crate) async fn to(host: &str) -> Relay {
        let target = format!("{host}:2379");
        let listener =
            TcpListener::bind(format!("{}:2379", own_address())).await.expect("an address of our own");
        let address = listener.local_addr().expect("it is bound").to_string();
        let mode = Arc::new(watch::Sender::new(Mode::Open));
        let accepting = mode.clone();
        let task = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(connection(client, target.clone(), accepting.subscribe()));
            }
        });
        Relay { mode, address, task }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub(crate) fn cut(&self) {
        self.mode.send_replace(Mode::Cut);
    }

    pub(crate) fn freeze(&self) {
        self.mode.send_replace(Mode::Frozen);
    }

    pub(crate) fn swallow_answers(&self) {
        self.mode.send_replace(Mode::Deaf);
    }

    pub(crate) fn heal(&self) {
        self.mode.send_replace(Mode::Open);
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.task.abort();
        self.mode.send_replace(Mode::Cut);
    }
}

async fn connection(mut client: TcpStream, target: String, mut mode: watch::Receiver<Mode>) {
    let now = *mode.borrow_and_update();
    if matches!(now, Mode::Open | Mode::Deaf) {
        let Ok(mut server) = TcpStream::connect(target).await else { return };
        let _ = (client.set_nodelay(true), server.set_nodelay(true));
        tokio::select! {
            _ = copy_bidirectional(&mut client, &mut server) => return,
            _ = mode.changed() => {}
        }
        let deaf = *mode.borrow_and_update() == Mode::Deaf;
        let (mut from_client, mut to_server) = (client.split().0, server.split().1);
        tokio::select! {
            Err(_) = copy(&mut from_client, &mut to_server), if deaf => {}
            () = frozen(&mut mode) => {}
        }
        return;
    }
    frozen(&mut mode).await;
    drop(client);
}

/// Holds on while nothing may be said.
async fn frozen(mode: &mut watch::Receiver<Mode>) {
    let _ = mode.wait_for(|mode| matches!(mode, Mode::Open | Mode::Cut)).await;
}
