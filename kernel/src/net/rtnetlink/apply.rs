//! Changes, in order, many to a system call.
//!
//! What needs only numbers (routes, neighbours, FDB entries, addresses) waits in a batch. What makes,
//! names or deletes links is done at once, after the batch before it, since names mean other links then.

use std::collections::{BTreeSet, HashMap};
use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;

use netlink_packet_core::{NLM_F_APPEND, NLM_F_CREATE};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::LinkInfo;
use nix::errno::Errno;

use super::decode::{self, SeenFdb};
use super::encode;
use super::observe;
use super::socket::{Batch, Refusal, Socket};
use super::socket_in;
use crate::net::{Address, Change, Failure, FdbEntry, Link, LinkKind, LinkName, LinkPatch};
use crate::netns::NetNs;

pub(super) fn apply(socket: &mut Socket, changes: &[Change]) -> Vec<Failure> {
    let mut apply = Apply { socket, changes, batch: Batch::new(), known: HashMap::new(), failures: vec![] };
    for nth in 0..changes.len() {
        if let Err(refusal) = apply.step(nth) {
            apply.fail(nth, refusal);
        }
    }
    apply.flush();
    apply.failures.sort_by_key(|failure| failure.index);
    apply.failures
}

struct Apply<'a> {
    socket: &'a mut Socket,
    changes: &'a [Change],
    /// Messages not sent yet, each with its change's place.
    batch: Batch<usize>,
    /// Links looked up since the last change of links.
    known: HashMap<LinkName, Known>,
    failures: Vec<Failure>,
}

/// What is to be known of a link to name it in a message.
#[derive(Clone, Copy)]
struct Known {
    index: u32,
    is_vxlan: bool,
}

impl Apply<'_> {
    fn step(&mut self, nth: usize) -> Result<(), Refusal> {
        let Some(change) = self.changes.get(nth) else { return Ok(()) };
        match change {
            Change::AddLink(link) => self.structural(|apply| apply.add_link(link)),
            Change::AddVethPair { host, peer, peer_netns } => {
                self.structural(|apply| apply.add_veth_pair(host, peer, peer_netns.as_deref()))
            }
            Change::DeleteLink(name) => self.structural(|apply| {
                let deleted = apply.socket.change(encode::delete_link(name), 0);
                deleted.or_else(|refusal| if refusal.is(Errno::ENODEV) { Ok(()) } else { Err(refusal) })
            }),
            Change::RenameLink { from, to } => self.structural(|apply| apply.rename_link(from, to)),
            Change::SetLink(name, patch) => {
                let index = self.index(name)?;
                let master = patch.master.as_ref().map(|master| self.index(master)).transpose()?;
                self.queue(nth, encode::set_link(index, patch, master), 0);
                Ok(())
            }
            Change::AddAddress(address) => {
                let index = self.index(&address.link)?;
                self.queue(nth, encode::add_address(address, index), encode::ADD);
                Ok(())
            }
            Change::DeleteAddress(address) => {
                let Some(index) = self.index_if_there(&address.link)? else { return Ok(()) };
                self.queue(nth, encode::delete_address(address, index), 0);
                Ok(())
            }
            Change::ReplaceRoute(route) => {
                let link = route.link.as_ref().map(|link| self.index(link)).transpose()?;
                self.queue(nth, encode::replace_route(route, link), encode::REPLACE);
                Ok(())
            }
            Change::DeleteRoute(route) => {
                let link = match &route.link {
                    None => None,
                    Some(name) => match self.index_if_there(name)? {
                        Some(index) => Some(index),
                        // Its routes went with it.
                        None => return Ok(()),
                    },
                };
                self.queue(nth, encode::delete_route(route, link), 0);
                Ok(())
            }
            Change::ReplaceNeighbour(neighbour) => {
                let index = self.index(&neighbour.link)?;
                self.queue(nth, encode::replace_neighbour(neighbour, index), encode::REPLACE);
                Ok(())
            }
            Change::DeleteNeighbour(neighbour) => {
                let Some(index) = self.index_if_there(&neighbour.link)? else { return Ok(()) };
                self.queue(nth, encode::delete_neighbour(neighbour, index), 0);
                Ok(())
            }
            Change::AddProxy(proxy) => {
                let index = self.index(&proxy.link)?;
                self.queue(nth, encode::add_proxy(proxy, index), encode::REPLACE);
                Ok(())
            }
            Change::DeleteProxy(proxy) => {
                let Some(index) = self.index_if_there(&proxy.link)? else { return Ok(()) };
                self.queue(nth, encode::delete_proxy(proxy, index), 0);
                Ok(())
            }
            Change::ReplaceFdb(entry) => {
                let Known { index, is_vxlan } = self.known(&entry.link)?;
                if !is_vxlan {
                    // The kernel would take the MAC for one more address of the link's own
                    // (net/core/rtnetlink.c, `ndo_dflt_fdb_add`).
                    return Err(Errno::EOPNOTSUPP.into());
                }
                if entry.mac.has_many_destinations() {
                    return self.only_destination(entry, index);
                }
                self.queue(nth, encode::replace_fdb(entry, index), encode::REPLACE);
                Ok(())
            }
            Change::DeleteFdb(entry) => {
                let Some(index) = self.index_if_there(&entry.link)? else { return Ok(()) };
                self.queue(nth, encode::delete_fdb(entry, index), 0);
                Ok(())
            }
        }
    }

    fn queue(&mut self, nth: usize, message: RouteNetlinkMessage, flags: u16) {
        self.batch.push(message, flags, nth);
        if self.batch.is_full() {
            self.flush();
        }
    }

    fn flush(&mut self) {
        if self.batch.is_empty() {
            return;
        }
        let batch = std::mem::replace(&mut self.batch, Batch::new());
        for (nth, refusal) in self.socket.transact(batch) {
            if !self.is_as_wanted(nth, &refusal) {
                self.fail(nth, refusal);
            }
        }
    }

    /// Whether a refusal says that things are as they should be already.
    fn is_as_wanted(&mut self, nth: usize, refusal: &Refusal) -> bool {
        match self.changes.get(nth) {
            Some(Change::DeleteAddress(_)) => refusal.is(Errno::EADDRNOTAVAIL) || refusal.is(Errno::ENODEV),
            Some(Change::DeleteRoute(_)) => refusal.is(Errno::ESRCH) || refusal.is(Errno::ENODEV),
            Some(Change::DeleteNeighbour(_) | Change::DeleteFdb(_) | Change::DeleteProxy(_)) => {
                refusal.is(Errno::ENOENT) || refusal.is(Errno::ENODEV)
            }
            Some(Change::AddAddress(address)) => refusal.is(Errno::EEXIST) && self.has_address(address),
            _ => false,
        }
    }

    fn fail(&mut self, nth: usize, refusal: Refusal) {
        if let Some(change) = self.changes.get(nth) {
            let Refusal { source, said } = refusal;
            self.failures.push(Failure { index: nth, change: change.clone(), said, source });
        }
    }

    /// Does something to links, in its place among the other changes.
    fn structural(&mut self, act: impl FnOnce(&mut Self) -> Result<(), Refusal>) -> Result<(), Refusal> {
        self.flush();
        let done = act(self);
        self.known.clear();
        done
    }

    fn index(&mut self, name: &LinkName) -> Result<u32, Refusal> {
        Ok(self.known(name)?.index)
    }

    fn known(&mut self, name: &LinkName) -> Result<Known, Refusal> {
        if let Some(known) = self.known.get(name) {
            return Ok(*known);
        }
        let link = link(self.socket, name)?;
        let known = Known { index: link.index, is_vxlan: matches!(link.kind, LinkKind::Vxlan(_)) };
        self.known.insert(name.clone(), known);
        Ok(known)
    }

    fn index_if_there(&mut self, name: &LinkName) -> Result<Option<u32>, Refusal> {
        match self.index(name) {
            Ok(index) => Ok(Some(index)),
            Err(refusal) if refusal.is(Errno::ENODEV) => Ok(None),
            Err(refusal) => Err(refusal),
        }
    }

    fn add_link(&mut self, wanted: &Link) -> Result<(), Refusal> {
        let info: Vec<LinkInfo> = match &wanted.kind {
            LinkKind::Vxlan(vxlan) => {
                let underlay = vxlan.underlay.as_ref().map(|name| self.index(name)).transpose()?;
                encode::vxlan_info(vxlan, underlay)
            }
            LinkKind::Bridge => encode::bridge_info(),
            kind => return Err(wrong(format!("a link of kind {kind:?} is not made this way"))),
        };
        let master = wanted.master.as_ref().map(|name| self.index(name)).transpose()?;
        let mut born = wanted.clone();
        if wanted.kind == LinkKind::Bridge {
            // Only a *change* of a bridge's MTU pins it; otherwise it follows its ports
            // (net/bridge/br_if.c, `br_mtu_auto_adjust`). `finish` makes the change.
            born.mtu = wanted.mtu.saturating_sub(1);
        }
        match self.socket.change(encode::add_link(&born, info, master), encode::ADD) {
            // The name is taken; or, for a VXLAN, its VNI and port are, under any name.
            Err(refusal) if refusal.is(Errno::EEXIST) => match link(self.socket, &wanted.name) {
                Ok(there) if there.is_as_wanted(wanted) => Ok(()),
                _ => Err(refusal),
            },
            Err(refusal) => Err(refusal),
            Ok(()) => finish(self.socket, wanted).inspect_err(|_| self.undo(wanted)),
        }
    }

    fn add_veth_pair(&mut self, host: &Link, peer: &Link, peer_netns: Option<&Path>) -> Result<(), Refusal> {
        let ns = peer_netns.map(NetNs::open).transpose().map_err(io::Error::other)?;
        let master = host.master.as_ref().map(|name| self.index(name)).transpose()?;
        let info = encode::veth_info(peer, ns.as_ref().map(AsRawFd::as_raw_fd));
        let mut far = match &ns {
            Some(ns) => Some(socket_in(ns).map_err(io::Error::other)?),
            None => None,
        };
        match self.socket.change(encode::add_link(host, info, master), encode::ADD) {
            Err(refusal) if refusal.is(Errno::EEXIST) => {
                let near_is = link(self.socket, &host.name).is_ok_and(|there| there.is_as_wanted(host));
                let far = far.as_mut().unwrap_or(self.socket);
                let far_is = link(far, &peer.name).is_ok_and(|there| there.is_as_wanted(peer));
                if near_is && far_is { Ok(()) } else { Err(refusal) }
            }
            Err(refusal) => Err(refusal),
            Ok(()) => {
                let near = finish(self.socket, host);
                let done = near.and_then(|()| finish(far.as_mut().unwrap_or(self.socket), peer));
                done.inspect_err(|_| self.undo(host))
            }
        }
    }

    /// A link that could not be finished is not left behind.
    fn undo(&mut self, link: &Link) {
        if let Err(refusal) = self.socket.change(encode::delete_link(&link.name), 0) {
            tracing::warn!(link = %link.name, error = %refusal.source, "a half-made link stays");
        }
    }

    fn rename_link(&mut self, from: &LinkName, to: &LinkName) -> Result<(), Refusal> {
        let index = self.index(from)?;
        let rename = encode::rename_link(index, to);
        match self.socket.change(rename.clone(), 0) {
            // Before 6.2 a link that is up keeps its name (net/core/dev.c, `dev_change_name`).
            Err(refusal) if refusal.is(Errno::EBUSY) => {
                let set_up = |up| {
                    let patch = LinkPatch { up: Some(up), ..LinkPatch::default() };
                    encode::set_link(index, &patch, None)
                };
                self.socket.change(set_up(false), 0)?;
                let renamed = self.socket.change(rename, 0);
                self.socket.change(set_up(true), 0)?;
                renamed
            }
            done => done,
        }
    }

    /// The one destination of a MAC that may have many: the others are taken away first.
    fn only_destination(&mut self, wanted: &FdbEntry, index: u32) -> Result<(), Refusal> {
        self.flush();
        let there = self.socket.dump(&encode::list_fdb(index), |message| match message {
            RouteNetlinkMessage::NewNeighbour(message) => match decode::fdb(&message, &wanted.link)? {
                SeenFdb::Plain(entry) | SeenFdb::Other(entry) => (entry.mac == wanted.mac).then_some(entry),
            },
            _ => None,
        })?;
        let mut batch = Batch::new();
        for other in there.iter().filter(|entry| entry.dst != wanted.dst) {
            batch.push(encode::delete_fdb(other, index), 0, ());
        }
        if !there.contains(wanted) {
            batch.push(encode::replace_fdb(wanted, index), NLM_F_CREATE | NLM_F_APPEND, ());
        }
        match self.socket.transact(batch).pop() {
            Some(((), refusal)) => Err(refusal),
            None => Ok(()),
        }
    }

    fn has_address(&mut self, address: &Address) -> bool {
        let Ok((_, names)) = observe::links(self.socket) else { return false };
        let there = self.socket.dump(&encode::list_addresses(), |message| match message {
            RouteNetlinkMessage::NewAddress(message) => decode::any_address(&message, &names),
            _ => None,
        });
        there.is_ok_and(|there| there.into_iter().collect::<BTreeSet<_>>().contains(address))
    }
}

/// What the kernel does not take at birth, and then up. The MAC is looked at again: whatever listens
/// to new links (udev) may have changed it in between.
fn finish(socket: &mut Socket, wanted: &Link) -> Result<(), Refusal> {
    let made = link(socket, &wanted.name)?;
    if matches!(wanted.kind, LinkKind::Vxlan(_)) {
        match socket.change(encode::no_link_local(made.index), 0) {
            // IPv6 is switched off altogether: there is nothing to keep from appearing.
            Err(refusal) if refusal.is(Errno::EAFNOSUPPORT) || refusal.is(Errno::EINVAL) => {}
            done => done?,
        }
    }
    let mac = wanted.mac.filter(|mac| made.mac != Some(*mac));
    let mtu = Some(wanted.mtu).filter(|mtu| *mtu != 0 && *mtu != made.mtu);
    let up = wanted.up.then_some(true);
    let patch = LinkPatch { mac, mtu, up, alias: wanted.alias.clone(), ..LinkPatch::default() };
    if patch == LinkPatch::default() {
        Ok(())
    } else {
        socket.change(encode::set_link(made.index, &patch, None), 0)
    }
}

/// A link by its name, its master and underlay named too.
fn link(socket: &mut Socket, name: &LinkName) -> Result<Link, Refusal> {
    let answer = socket.get(encode::get_link(name))?;
    let unreadable = || io::Error::new(io::ErrorKind::InvalidData, "a link that does not parse");
    let RouteNetlinkMessage::NewLink(message) = answer else { return Err(unreadable().into()) };
    let raw = decode::link(&message).ok_or_else(unreadable)?;
    let names =
        if raw.refers() { observe::links(socket).map_err(io::Error::other)?.1 } else { Default::default() };
    Ok(raw.resolve(&names))
}

fn wrong(message: String) -> Refusal {
    io::Error::new(io::ErrorKind::InvalidInput, message).into()
}
