//! Tells when somebody changes how the kernel forwards or filters: `ip_forward`, `forwarding`,
//! `rp_filter`, `proxy_arp` and their like, which no other event speaks of.

use std::io;
use std::os::fd::AsRawFd;

use netlink_sys::{Socket, protocols::NETLINK_ROUTE};
use nix::sys::socket::{MsgFlags, recv};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

// include/uapi/linux/rtnetlink.h, `enum rtnetlink_groups`
const RTNLGRP_IPV4_NETCONF: u32 = 24;
const RTNLGRP_IPV6_NETCONF: u32 = 25;

/// Listens in the network namespace of the thread that called [`Netconf::open`].
#[derive(Debug)]
pub struct Netconf {
    socket: AsyncFd<Socket>,
}

impl Netconf {
    /// Starts to listen; needs a runtime.
    ///
    /// # Errors
    /// When the kernel gives no socket.
    pub fn open() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        socket.bind_auto()?;
        for group in [RTNLGRP_IPV4_NETCONF, RTNLGRP_IPV6_NETCONF] {
            socket.add_membership(group)?;
        }
        socket.set_non_blocking(true)?;
        // SAFETY: the socket owns its descriptor, always the same one, and the `AsyncFd` owns the socket,
        // so the descriptor stays open until it is deregistered.
        let socket = unsafe { AsyncFd::register_with_interest(socket, Interest::READABLE) }?;
        Ok(Self { socket })
    }

    /// Waits until something was changed since the last time, by us or by others. What it was is not
    /// said: whoever cares looks at the settings themselves.
    ///
    /// # Errors
    /// When the runtime is shutting down.
    pub async fn changed(&mut self) -> io::Result<()> {
        let mut buffer = [0; 4096];
        let mut heard = false;
        loop {
            let mut guard = self.socket.readable().await?;
            loop {
                match recv(guard.get_inner().as_raw_fd(), &mut buffer, MsgFlags::MSG_DONTWAIT) {
                    Err(nix::Error::EAGAIN) => break,
                    Err(nix::Error::EINTR) => {}
                    // Messages, or the word that some were lost (ENOBUFS): either way there was a change.
                    Ok(_) | Err(nix::Error::ENOBUFS) => heard = true,
                    Err(error) => return Err(error.into()),
                }
            }
            guard.clear_ready();
            if heard {
                return Ok(());
            }
        }
    }
}
