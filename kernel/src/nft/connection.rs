//! The socket: commits transactions, reads tables back.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::AsRawFd;

use netlink_packet_core::{NLM_F_DUMP, NLM_F_DUMP_INTR};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_NETFILTER};
use nix::sys::socket::{MsgFlags, recv, setsockopt, sockopt};
use nix::sys::time::{TimeVal, TimeValLike};

use super::answer::{Answer, NLMSG_ERROR};
use super::decode::{self, RawElements};
use super::encode::{Encoded, batch, wanted_element};
use super::wire::{Head, Malformed, Message, Messages, SUBSYSTEM, Writer, msg};
use super::{
    Chain, ChainName, Comment, Elements, Family, Key, Object, Set, SetName, SetSpec, Table, TableKey,
    Transaction, Value,
};

/// `NLMSG_DONE`.
const NLMSG_DONE: u16 = 3;

/// The kernel writes at most 32 KiB at a time into a dump (`netlink_dump`, net/netlink/af_netlink.c)
/// and two pages into a notification.
const RECEIVE_BUFFER: usize = 64 * 1024;

/// The kernel answers within the call or not at all; this only keeps a surprise from lasting.
const PATIENCE_SECONDS: i64 = 10;

/// How often a dump is begun anew because the rules changed meanwhile.
const DUMP_TRIES: usize = 20;

/// nftables in the network namespace of the thread that called [`Nft::open`].
///
/// Calls block for as long as the kernel takes: well under a millisecond for a small change.
#[derive(Debug)]
pub struct Nft {
    socket: Socket,
    port: u32,
    seq: u32,
    buffer: Vec<u8>,
}

/// A transaction that was not committed. Nothing of it is in force.
#[derive(Debug, thiserror::Error)]
pub enum CommitError {
    /// The kernel refused it.
    #[error("{}", list(.0))]
    Refused(Vec<Refusal>),
    /// It holds something longer than netlink can carry.
    #[error("{0} is too long for netlink")]
    TooLong(Object),
    /// It could not be sent, or no answer came. (If no answer came it may be in force after all.)
    #[error("cannot talk to nftables")]
    Socket(#[source] io::Error),
}

fn list(refusals: &[Refusal]) -> String {
    refusals.iter().map(Refusal::to_string).collect::<Vec<_>>().join("; ")
}

/// One step that the kernel refused.
#[derive(Debug, thiserror::Error)]
#[error("nftables refused {object}: {source}{}", .text.as_ref().map(|text| format!(" ({text})")).unwrap_or_default())]
pub struct Refusal {
    /// What it was about.
    pub object: Object,
    /// The kernel's answer.
    pub source: io::Error,
    /// What the kernel said beside the number.
    pub text: Option<String>,
}

/// Why tables could not be read.
#[derive(Debug, thiserror::Error)]
pub enum DumpError {
    /// The kernel could not be asked, or refused.
    #[error("cannot read nftables' {what}")]
    Io {
        /// What was being read.
        what: &'static str,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The kernel's answer makes no sense.
    #[error("cannot understand nftables' {what}")]
    Malformed {
        /// What was being read.
        what: &'static str,
        /// What is wrong with it.
        #[source]
        source: Malformed,
    },
    /// The rules changed each time before they had been read.
    #[error("nftables' rules change too often to be read")]
    Restless,
}

/// What one rule's counter has counted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CounterReading {
    /// The rule's chain.
    pub chain: ChainName,
    /// The rule's remark.
    pub comment: Option<Comment>,
    /// How many packets.
    pub packets: u64,
    /// How many bytes.
    pub bytes: u64,
}

/// What one element of a set has counted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ElementReading {
    /// The element.
    pub key: Key,
    /// What it leads to.
    pub value: Value,
    /// How many packets.
    pub packets: u64,
    /// How many bytes.
    pub bytes: u64,
}

impl Nft {
    /// Opens a socket in this thread's network namespace.
    pub fn open() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_NETFILTER)?;
        let port = socket.bind_auto()?.port_number();
        socket.connect(&SocketAddr::new(0, 0))?;
        socket.set_ext_ack(true)?;
        // An error comes back without the message it is about, which can be 64 KiB long.
        socket.set_cap_ack(true)?;
        setsockopt(&socket, sockopt::ReceiveTimeout, &TimeVal::seconds(PATIENCE_SECONDS))?;
        Ok(Self { socket, port, seq: 1, buffer: vec![0; RECEIVE_BUFFER] })
    }

    /// The netlink port by which events tell our own changes from others'.
    pub fn port(&self) -> u32 {
        self.port
    }

    /// Makes all steps come true at once, or none.
    pub fn commit(&mut self, transaction: &Transaction) -> Result<(), CommitError> {
        if transaction.is_empty() {
            return Ok(());
        }
        let first = self.seq;
        let encoded = batch(transaction, first).map_err(CommitError::TooLong)?;
        let count = u32::try_from(encoded.objects.len()).unwrap_or(u32::MAX);
        self.seq = self.seq.wrapping_add(count);
        self.send_batch(&encoded.bytes).map_err(CommitError::Socket)?;
        self.read_verdict(&encoded, first)
    }

    /// One table with everything in it; `None` if there is no such table.
    pub fn table(&mut self, key: &TableKey) -> Result<Option<Table>, DumpError> {
        for _ in 0..DUMP_TRIES {
            let before = self.generation()?;
            let table = match self.read_table(key) {
                Ok(table) => table,
                Err(Interrupted::Again) => continue,
                Err(Interrupted::Failed(error)) => return Err(error),
            };
            if self.generation()? == before {
                return Ok(table);
            }
        }
        Err(DumpError::Restless)
    }

    /// Those of these elements that a set has, without a look at all the others.
    pub fn find<'a>(
        &mut self,
        table: &TableKey,
        set: &SetName,
        spec: &SetSpec,
        keys: impl IntoIterator<Item = &'a Key>,
    ) -> Result<Elements, DumpError> {
        let what = "set elements";
        let mut found = RawElements::default();
        for key in keys {
            let body = |w: &mut Writer| {
                w.string(1, table.name.as_str());
                w.string(2, set.as_str());
                w.nest(3, |w| wanted_element(w, spec, key));
            };
            let asked = self.request(msg::GETSETELEM, 0, table.family, body);
            let seq = asked.map_err(|source| DumpError::Io { what, source })?;
            self.read_found(seq, &mut found)?;
        }
        Ok(found.finish(spec))
    }

    /// The answer to one question: the element, or that it is not there.
    fn read_found(&mut self, seq: u32, found: &mut RawElements) -> Result<(), DumpError> {
        let what = "set elements";
        let malformed = |source| DumpError::Malformed { what, source };
        loop {
            let len =
                receive(&self.socket, &mut self.buffer).map_err(|source| DumpError::Io { what, source })?;
            for message in Messages(self.buffer.get(..len).unwrap_or_default()) {
                let message = message.map_err(malformed)?;
                if message.seq != seq {
                    continue;
                }
                if message.kind != NLMSG_ERROR {
                    return found.extend(message.attrs()).map_err(malformed);
                }
                return match Answer::read(&message).map_err(malformed)?.error {
                    Some(error) if error.kind() != io::ErrorKind::NotFound => {
                        Err(DumpError::Io { what, source: error })
                    }
                    _ => Ok(()),
                };
            }
        }
    }

    /// The chains of a table with their rules, without its sets; none if there is no such table.
    pub fn chains(&mut self, key: &TableKey) -> Result<BTreeMap<ChainName, Chain>, DumpError> {
        for _ in 0..DUMP_TRIES {
            match self.read_chains(key) {
                Ok(chains) => return Ok(chains),
                Err(Interrupted::Again) => {}
                Err(Interrupted::Failed(error)) => return Err(error),
            }
        }
        Err(DumpError::Restless)
    }

    /// The tables there are, everybody's.
    pub fn tables(&mut self) -> Result<Vec<TableKey>, DumpError> {
        for _ in 0..DUMP_TRIES {
            let mut keys = Vec::new();
            let done = self.dump(
                "tables",
                msg::GETTABLE,
                Family::Other(0),
                |_| {},
                |message| {
                    let name = decode::table_of(message.attrs())?;
                    keys.push(TableKey { family: Family::from_raw(message.family()?), name });
                    Ok(())
                },
            );
            match done {
                Ok(()) => return Ok(keys),
                Err(Interrupted::Again) => {}
                Err(Interrupted::Failed(error)) => return Err(error),
            }
        }
        Err(DumpError::Restless)
    }

    /// What the counters of a table's rules have counted, in the order of chains and rules. Nothing
    /// if there is no such table.
    pub fn counters(&mut self, key: &TableKey) -> Result<Vec<CounterReading>, DumpError> {
        for _ in 0..DUMP_TRIES {
            let mut readings = Vec::new();
            let done = self.dump_rules(key, |message| {
                let (chain, rule) = decode::rule(message.attrs())?;
                for (packets, bytes) in decode::counters(message.attrs())? {
                    let (chain, comment) = (chain.clone(), rule.comment.clone());
                    readings.push(CounterReading { chain, comment, packets, bytes });
                }
                Ok(())
            });
            match done {
                Ok(()) => return Ok(readings),
                Err(Interrupted::Again) => {}
                Err(Interrupted::Failed(error)) => return Err(error),
            }
        }
        Err(DumpError::Restless)
    }

    /// What the elements of a table's counted sets have counted. Nothing if there is no such table.
    pub fn element_counters(
        &mut self,
        key: &TableKey,
    ) -> Result<BTreeMap<SetName, Vec<ElementReading>>, DumpError> {
        // To ask for the sets of a table that is not there is an error, as if it had just gone.
        if !self.tables()?.contains(key) {
            return Ok(BTreeMap::new());
        }
        for _ in 0..DUMP_TRIES {
            match self.read_element_counters(key) {
                Ok(readings) => return Ok(readings),
                Err(Interrupted::Again) => {}
                Err(Interrupted::Failed(error)) => return Err(error),
            }
        }
        Err(DumpError::Restless)
    }

    fn send_batch(&mut self, bytes: &[u8]) -> io::Result<()> {
        // One datagram must fit the send buffer, with the kernel's own bookkeeping beside it; the
        // kernel doubles what is asked for. FORCE needs CAP_NET_ADMIN, as do changes anyway.
        setsockopt(&self.socket, sockopt::SndBufForce, &bytes.len().max(RECEIVE_BUFFER))?;
        // Every refused step is answered, so a hopeless transaction has many answers.
        setsockopt(&self.socket, sockopt::RcvBufForce, &bytes.len().max(1 << 20))?;
        let sent = self.socket.send(bytes, 0)?;
        if sent == bytes.len() { Ok(()) } else { Err(io::Error::from(io::ErrorKind::WriteZero)) }
    }

    /// Reads the answers, which are all there when the batch has been sent: the kernel works it off
    /// within the call.
    fn read_verdict(&mut self, encoded: &Encoded, first: u32) -> Result<(), CommitError> {
        let last = encoded.objects.len().saturating_sub(2);
        let mut acknowledged = false;
        let mut refusals = Vec::new();
        loop {
            let len = match recv(self.socket.as_raw_fd(), &mut self.buffer, MsgFlags::MSG_DONTWAIT) {
                Ok(len) => len,
                Err(nix::Error::EAGAIN) => break,
                // More refusals than fit: those we have tell enough.
                Err(nix::Error::ENOBUFS) if !refusals.is_empty() => continue,
                Err(nix::Error::EINTR) => continue,
                Err(error) => return Err(CommitError::Socket(error.into())),
            };
            let datagram = self.buffer.get(..len).unwrap_or_default();
            for message in Messages(datagram).flatten().filter(|message| message.kind == NLMSG_ERROR) {
                let index = message.seq.wrapping_sub(first) as usize;
                let Some(object) = encoded.objects.get(index) else { continue };
                let Ok(answer) = Answer::read(&message) else { continue };
                let object = answer.blame(object, encoded, index);
                match answer.error {
                    None => acknowledged |= index == last,
                    Some(source) => refusals.push(Refusal { object, source, text: answer.text }),
                }
            }
        }
        match (refusals.is_empty(), acknowledged) {
            (false, _) => Err(CommitError::Refused(refusals)),
            (true, true) => Ok(()),
            (true, false) => Err(CommitError::Socket(io::Error::from(io::ErrorKind::TimedOut))),
        }
    }

    /// The rule set's generation, which each transaction of anybody's advances by one.
    pub fn generation(&mut self) -> Result<u32, DumpError> {
        let what = "generation";
        self.request(msg::GETGEN, 0, Family::Other(0), |_| {})
            .map_err(|source| DumpError::Io { what, source })?;
        loop {
            let len =
                receive(&self.socket, &mut self.buffer).map_err(|source| DumpError::Io { what, source })?;
            for message in Messages(self.buffer.get(..len).unwrap_or_default()) {
                let message = message.map_err(|source| DumpError::Malformed { what, source })?;
                if message.nft() == Some(msg::NEWGEN) {
                    let id = message.attrs().need(1).and_then(|attr| attr.be32());
                    return id.map_err(|source| DumpError::Malformed { what, source });
                }
                if let Some(source) = Answer::read(&message).ok().and_then(|answer| answer.error) {
                    return Err(DumpError::Io { what, source });
                }
            }
        }
    }

    fn read_table(&mut self, key: &TableKey) -> Result<Option<Table>, Interrupted> {
        let mut found = None;
        self.dump(
            "tables",
            msg::GETTABLE,
            key.family,
            |_| {},
            |message| {
                let (name, comment, dormant) = decode::table(message.attrs())?;
                if name == key.name {
                    found = Some(Table { comment, dormant, ..Table::new(key.family, name) });
                }
                Ok(())
            },
        )?;
        let Some(mut table) = found else { return Ok(None) };
        table.chains = self.read_chains(key)?;
        for (name, spec, count) in self.read_sets(key)? {
            let elements = self.read_all_elements(key, &name, &spec, count)?;
            table.sets.insert(name, Set { spec, elements });
        }
        Ok(Some(table))
    }

    fn read_chains(&mut self, key: &TableKey) -> Result<BTreeMap<ChainName, Chain>, Interrupted> {
        let mut chains: BTreeMap<ChainName, Chain> = BTreeMap::new();
        self.dump(
            "chains",
            msg::GETCHAIN,
            key.family,
            |_| {},
            |message| {
                if decode::table_of(message.attrs())? == key.name {
                    let (name, chain) = decode::chain(message.attrs())?;
                    chains.insert(name, chain);
                }
                Ok(())
            },
        )?;
        self.dump_rules(key, |message| {
            let (chain, rule) = decode::rule(message.attrs())?;
            chains.entry(chain).or_default().rules.push(rule);
            Ok(())
        })?;
        Ok(chains)
    }

    fn dump_rules(
        &mut self,
        key: &TableKey,
        mut each: impl FnMut(&Message<'_>) -> Result<(), Malformed>,
    ) -> Result<(), Interrupted> {
        let table = key.name.as_str();
        self.dump(
            "rules",
            msg::GETRULE,
            key.family,
            |w| w.string(1, table),
            |message| {
                if decode::table_of(message.attrs())? == key.name { each(message) } else { Ok(()) }
            },
        )
    }

    /// Each with the number of its elements, if the kernel tells.
    fn read_sets(&mut self, key: &TableKey) -> Result<Vec<(SetName, SetSpec, Option<u32>)>, Interrupted> {
        let mut sets = Vec::new();
        let table = key.name.as_str();
        self.dump(
            "sets",
            msg::GETSET,
            key.family,
            |w| w.string(1, table),
            |message| {
                if decode::table_of(message.attrs())? == key.name {
                    let (name, spec) = decode::set(message.attrs())?;
                    sets.push((name, spec, decode::set_count(message.attrs())?));
                }
                Ok(())
            },
        )?;
        Ok(sets)
    }

    /// Some time after many elements came or went the kernel makes a set's hash table larger or smaller,
    /// and meanwhile a dump can miss some: for each message `nft_rhash_walk` (net/netfilter/nft_set_hash.c)
    /// begins anew and skips as many as it has sent. The generation stays, so only their number tells.
    fn read_all_elements(
        &mut self,
        key: &TableKey,
        set: &SetName,
        spec: &SetSpec,
        count: Option<u32>,
    ) -> Result<Elements, Interrupted> {
        // Elements of dynamic sets come and go, and those of trees are two for each range.
        let count = count.filter(|_| !spec.dynamic && !spec.interval).map_or(0, |count| count as usize);
        let mut elements = self.read_elements(key, set, spec)?;
        for _ in 1..DUMP_TRIES {
            if elements.len() >= count {
                break;
            }
            elements = self.read_elements(key, set, spec)?;
        }
        Ok(elements)
    }

    fn read_elements(
        &mut self,
        key: &TableKey,
        set: &SetName,
        spec: &SetSpec,
    ) -> Result<Elements, Interrupted> {
        let mut elements = RawElements::default();
        self.dump_elements(key, set, |message| elements.extend(message.attrs()))?;
        Ok(elements.finish(spec))
    }

    fn dump_elements(
        &mut self,
        key: &TableKey,
        set: &SetName,
        each: impl FnMut(&Message<'_>) -> Result<(), Malformed>,
    ) -> Result<(), Interrupted> {
        let name = |w: &mut Writer| {
            w.string(1, key.name.as_str());
            w.string(2, set.as_str());
        };
        self.dump("set elements", msg::GETSETELEM, key.family, name, each)
    }

    fn read_element_counters(
        &mut self,
        key: &TableKey,
    ) -> Result<BTreeMap<SetName, Vec<ElementReading>>, Interrupted> {
        let mut all = BTreeMap::new();
        for (set, ..) in self.read_sets(key)?.into_iter().filter(|(_, spec, _)| spec.counted) {
            let mut readings = Vec::new();
            self.dump_elements(key, &set, |message| {
                readings.extend(decode::element_counters(message.attrs())?);
                Ok(())
            })?;
            all.insert(set, readings);
        }
        Ok(all)
    }

    /// Asks for all objects of a kind and hands over each message.
    fn dump(
        &mut self,
        what: &'static str,
        kind: u16,
        family: Family,
        body: impl FnOnce(&mut Writer),
        mut each: impl FnMut(&Message<'_>) -> Result<(), Malformed>,
    ) -> Result<(), Interrupted> {
        let failed = |source: io::Error| Interrupted::Failed(DumpError::Io { what, source });
        let malformed = |source: Malformed| Interrupted::Failed(DumpError::Malformed { what, source });
        let seq = self.request(kind, NLM_F_DUMP, family, body).map_err(failed)?;
        let mut interrupted = false;
        let mut first_error = None;
        loop {
            let len = receive(&self.socket, &mut self.buffer).map_err(failed)?;
            for message in Messages(self.buffer.get(..len).unwrap_or_default()) {
                let message = message.map_err(malformed)?;
                // What is left of a dump that was given up.
                if message.seq != seq {
                    continue;
                }
                interrupted |= message.flags & NLM_F_DUMP_INTR != 0;
                match message.kind {
                    NLMSG_DONE => {
                        return match first_error {
                            _ if interrupted => Err(Interrupted::Again),
                            Some(error) => Err(malformed(error)),
                            None => Ok(()),
                        };
                    }
                    NLMSG_ERROR => {
                        let answer = Answer::read(&message).map_err(malformed)?;
                        match answer.error {
                            // The table or set went away since it was listed.
                            Some(error) if error.kind() == io::ErrorKind::NotFound => {
                                return Err(Interrupted::Again);
                            }
                            Some(error) if error.raw_os_error() == Some(libc::EINTR) => {
                                return Err(Interrupted::Again);
                            }
                            Some(error) => return Err(failed(error)),
                            None => {}
                        }
                    }
                    _ => {
                        if let Err(error) = each(&message) {
                            first_error.get_or_insert(error);
                        }
                    }
                }
            }
        }
    }

    fn request(
        &mut self,
        kind: u16,
        flags: u16,
        family: Family,
        body: impl FnOnce(&mut Writer),
    ) -> io::Result<u32> {
        let seq = self.seq;
        self.seq = self.seq.wrapping_add(1);
        let mut writer = Writer::default();
        let head = Head { kind: SUBSYSTEM << 8 | kind, flags, seq, family: family.raw(), resource: 0 };
        writer.message(head, body);
        let bytes = writer.finish().ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
        self.socket.send(&bytes, 0)?;
        Ok(seq)
    }
}

/// Why a dump has no result.
enum Interrupted {
    /// The rules changed meanwhile.
    Again,
    Failed(DumpError),
}

impl From<DumpError> for Interrupted {
    fn from(error: DumpError) -> Self {
        Self::Failed(error)
    }
}

/// The next datagram's length; waits for it.
fn receive(socket: &Socket, buffer: &mut [u8]) -> io::Result<usize> {
    loop {
        match recv(socket.as_raw_fd(), buffer, MsgFlags::empty()) {
            Err(nix::Error::EINTR) => {}
            Err(nix::Error::EAGAIN) => return Err(io::Error::from(io::ErrorKind::TimedOut)),
            other => return Ok(other?),
        }
    }
}
