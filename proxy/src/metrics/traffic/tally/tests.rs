//! A kernel whose table is dumped in pieces while flows come and go, and cases one by one.

use proptest::prelude::*;
use weft_kernel::conntrack::Tuple;

use super::*;
use crate::model::{self, ServiceName};

const FIVE: &str = "10.1.0.5:8080";

fn web() -> PortName {
    let (service, port) = (ServiceName::new("shop", "web"), "http".into());
    PortName { service, port, protocol: model::Protocol::Tcp }
}

/// A flow from this port of the client, to the first endpoint.
fn flow(port: u16, packets: u64) -> Flow {
    let at = |raw: &str| -> SocketAddr { raw.parse().unwrap() };
    let client = SocketAddr::new(at("10.9.0.1:0").ip(), port);
    Flow {
        protocol: Protocol::Tcp,
        original: Tuple { source: client, destination: at("10.96.0.10:80") },
        reply: Tuple { source: at(FIVE), destination: client },
        id: port.into(),
        zone: 0,
        carried: carried(packets),
    }
}

/// Each packet is 100 bytes, and each second one is answered by 1000.
fn carried(packets: u64) -> Carried {
    let counted = |packets, size| Counted { packets, bytes: packets * size };
    Carried { original: counted(packets, 100), reply: counted(packets / 2, 1000) }
}

/// What the service has carried, in packets of clients; the other numbers have to agree.
fn total(tally: &Tally) -> u64 {
    let mut sums = tally.services().map(|(_, sum)| sum);
    let (sum, other) = (sums.next().unwrap_or_default(), sums.next());
    assert_eq!((other, sum.original.bytes), (None, sum.original.packets * 100));
    assert_eq!(sum.reply.bytes, sum.reply.packets * 1000);
    sum.original.packets
}

fn dump(tally: &mut Tally, now: Instant, flows: &[Flow]) {
    tally.dump_begins(now);
    flows.iter().for_each(|flow| tally.seen(flow, || Some(web())));
    tally.dump_ended(true);
}

/// A tally that has had its first dump, in which there was nothing.
fn begun() -> (Tally, Instant) {
    let (mut tally, now) = (Tally::default(), Instant::now());
    dump(&mut tally, now, &[]);
    (tally, now)
}

#[test]
fn what_counts_and_what_does_not() {
    enum Step {
        Dump(&'static [u64]),
        Ends(u64),
    }
    use Step::{Dump, Ends};
    type Case<'a> = (&'a str, &'a [Step], u64);
    let table: [Case<'_>; 10] = [
        ("nothing", &[], 0),
        ("a flow that nobody saw before its end", &[Ends(7)], 7),
        ("one that lives", &[Dump(&[5])], 5),
        ("one that goes on", &[Dump(&[5]), Dump(&[9])], 9),
        ("one that comes twice in a dump", &[Dump(&[5, 5, 6])], 6),
        ("one that goes on until it ends", &[Dump(&[5]), Ends(9)], 9),
        ("a dump that still speaks of it", &[Dump(&[5]), Ends(9), Dump(&[9])], 9),
        ("its counters were set to zero", &[Dump(&[5]), Dump(&[3])], 8),
        ("one dump misses it", &[Dump(&[5]), Dump(&[]), Dump(&[6])], 6),
        ("it began before anything was counted", &[Dump(&[0]), Ends(0)], 0),
    ];
    for (case, steps, expected) in table {
        let (mut tally, now) = begun();
        for step in steps {
            match step {
                Dump(packets) => {
                    let flows: Vec<Flow> = packets.iter().map(|packets| flow(1, *packets)).collect();
                    dump(&mut tally, now, &flows);
                }
                Ends(packets) => tally.ended(&flow(1, *packets), now, || Some(web())),
            }
        }
        assert_eq!(total(&tally), expected, "{case}");
    }
}

#[test]
fn what_was_carried_before_the_first_dump_is_not_counted() {
    let (mut tally, now) = (Tally::default(), Instant::now());
    tally.ended(&flow(2, 50), now, || Some(web()));
    tally.dump_begins(now);
    tally.seen(&flow(1, 100), || Some(web()));
    tally.dump_ended(false);
    dump(&mut tally, now, &[flow(1, 104)]);
    assert_eq!(total(&tally), 4, "since it was first seen");
    dump(&mut tally, now, &[flow(1, 110), flow(3, 2)]);
    assert_eq!(total(&tally), 12);
}

#[test]
fn flows_of_nobody_cost_nothing() {
    let (mut tally, now) = begun();
    tally.seen(&flow(1, 5), || None);
    tally.ended(&flow(2, 5), now, || None);
    assert!(tally.flows.is_empty() && tally.ended.is_empty() && tally.ports.is_empty());
}

#[test]
fn a_flow_whose_end_was_lost_is_forgotten() {
    let (mut tally, now) = begun();
    dump(&mut tally, now, &[flow(1, 5)]);
    dump(&mut tally, now, &[]);
    assert_eq!(tally.flows.len(), 1);
    dump(&mut tally, now, &[]);
    assert!(tally.flows.is_empty());
    assert_eq!((total(&tally), tally.series.values().map(|it| it.live).sum::<usize>()), (5, 0));
}

#[test]
fn ends_are_remembered_for_a_moment() {
    let (mut tally, now) = begun();
    (1..=1000).for_each(|port| tally.ended(&flow(port, 1), now, || Some(web())));
    assert_eq!(tally.flows.len(), 1000);
    tally.ended(&flow(1, 1), now + GRACE / 2, || Some(web()));
    tally.ended(&flow(1001, 1), now + GRACE, || Some(web()));
    assert_eq!((tally.flows.len(), tally.ended.len()), (2, 2), "the second end of the same id stays");
    dump(&mut tally, now + 2 * GRACE, &[]);
    assert!(tally.flows.is_empty() && tally.ended.is_empty());
    assert!(tally.flows.capacity() < 100, "and their room is given back");
    assert_eq!(total(&tally), 1002);
}

#[test]
fn series_go_with_whom_they_are_of() {
    let (mut tally, now) = begun();
    let five: SocketAddr = FIVE.parse().unwrap();
    let shown = |tally: &Tally| -> Vec<u64> {
        tally.endpoints().map(|(_, _, carried)| carried.original.packets).collect()
    };
    dump(&mut tally, now, &[flow(1, 5)]);
    tally.retain(|_| Some(vec![five]));
    tally.retain(|_| Some(vec![]));
    tally.retain(|_| Some(vec![]));
    assert_eq!(shown(&tally), [5], "a flow still leads to the endpoint");
    tally.ended(&flow(1, 9), now, || Some(web()));
    tally.retain(|_| Some(vec![]));
    assert_eq!(shown(&tally), [9], "once more, with its last bytes");
    tally.retain(|_| Some(vec![]));
    assert_eq!(shown(&tally), [] as [u64; 0]);
    assert_eq!(total(&tally), 9, "the service has carried them");
    tally.ended(&flow(2, 1), now, || Some(web()));
    assert_eq!((shown(&tally), total(&tally)), (vec![1], 10), "the endpoint is back");

    // The service goes while a flow of it lives, and comes back.
    dump(&mut tally, now, &[flow(3, 4)]);
    tally.retain(|_| None);
    assert!(tally.ports.is_empty() && tally.series.is_empty());
    tally.seen(&flow(3, 6), || None);
    tally.seen(&flow(3, 7), || Some(web()));
    assert_eq!(total(&tally), 1, "nobody's meanwhile");
    tally.ended(&flow(3, 9), now, || Some(web()));
    assert_eq!(total(&tally), 3);
    assert!(tally.series.values().all(|it| it.live == 0));
}

#[test]
fn a_hundred_thousand_flows_are_some_megabytes() {
    let each = size_of::<(Identity, State)>();
    assert!(each <= 104, "{each} bytes");
}

/// As many flows as there can be at a time, and so many in a piece of a dump.
const SLOTS: usize = 6;
const PIECE: usize = 2;

/// A kernel: each slot has one flow at a time, and all of a slot's look the same.
#[derive(Default)]
struct Kernel {
    slots: [Option<Tracked>; SLOTS],
    told: VecDeque<Flow>,
    /// All packets that were ever carried.
    carried: u64,
}

#[derive(Clone, Copy)]
struct Tracked {
    packets: u64,
    /// Its end was told, and it is still in the table.
    dying: bool,
}

/// A dump under way: where it is, and the piece that has been made.
struct Dump {
    at: usize,
    made: Vec<Flow>,
}

#[derive(Clone, Copy, Debug)]
enum Op {
    Open(usize),
    Carry(usize, u64),
    End(usize),
    Unlink(usize),
    /// Reads one end.
    Read,
    /// Receives a piece; begins a dump if none is under way.
    Dump,
    /// The dump under way breaks off.
    Break,
    /// Time passes.
    Wait(u64),
    /// What was told is lost.
    Lose,
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let op = prop_oneof![
        3 => (0..SLOTS).prop_map(Op::Open),
        5 => (0..SLOTS, 1..20u64).prop_map(|(slot, packets)| Op::Carry(slot, packets)),
        3 => (0..SLOTS).prop_map(Op::End),
        3 => (0..SLOTS).prop_map(Op::Unlink),
        2 => Just(Op::Read),
        6 => Just(Op::Dump),
        1 => Just(Op::Break),
        1 => (1..1500u64).prop_map(Op::Wait),
        1 => Just(Op::Lose),
    ];
    proptest::collection::vec(op, 0..120)
}

impl Kernel {
    fn flow(slot: usize, tracked: Tracked) -> Flow {
        flow(u16::try_from(slot).unwrap(), tracked.packets)
    }

    fn piece(&self, at: usize) -> Vec<Flow> {
        let slots = self.slots.iter().enumerate().skip(at).take(PIECE);
        slots.filter_map(|(slot, tracked)| Some(Self::flow(slot, (*tracked)?))).collect()
    }

    fn act(&mut self, op: Op) {
        match op {
            Op::Open(slot) => {
                if self.slots[slot].is_none() {
                    self.slots[slot] = Some(Tracked { packets: 1, dying: false });
                    self.carried += 1;
                }
            }
            Op::Carry(slot, packets) => {
                if let Some(tracked) = self.slots[slot].as_mut().filter(|it| !it.dying) {
                    tracked.packets += packets;
                    self.carried += packets;
                }
            }
            Op::End(slot) => {
                if let Some(tracked) = self.slots[slot].as_mut().filter(|it| !it.dying) {
                    tracked.dying = true;
                    let ended = Self::flow(slot, *tracked);
                    self.told.push_back(ended);
                }
            }
            Op::Unlink(slot) => {
                self.slots[slot].take_if(|it| it.dying);
            }
            Op::Lose => self.told.clear(),
            Op::Wait(_) => (0..SLOTS).for_each(|slot| self.act(Op::Unlink(slot))),
            Op::Read | Op::Dump | Op::Break => {}
        }
    }

    fn live(&self) -> u64 {
        self.slots.iter().flatten().map(|it| it.packets).sum()
    }
}

fn read_all(kernel: &mut Kernel, tally: &mut Tally, now: Instant) {
    kernel.told.drain(..).for_each(|flow| tally.ended(&flow, now, || Some(web())));
}

/// Lets things happen, and says what was counted in the end and what was carried since the first dump.
fn play(before: &[Op], ops: &[Op], may_lose: bool) -> (u64, u64) {
    let (mut kernel, mut tally, mut now) = (Kernel::default(), Tally::default(), Instant::now());
    before.iter().for_each(|op| kernel.act(*op));
    // Who begins to listen knows no flow whose end was told before.
    kernel.told.clear();
    (0..SLOTS).for_each(|slot| kernel.act(Op::Unlink(slot)));
    let first: Vec<Flow> = (0..SLOTS).step_by(PIECE).flat_map(|at| kernel.piece(at)).collect();
    dump(&mut tally, now, &first);
    kernel.carried = 0;
    let mut under_way: Option<Dump> = None;
    let mut last = 0;
    for op in ops {
        match op {
            Op::Lose if !may_lose => continue,
            Op::Wait(millis) => now += Duration::from_millis(*millis),
            Op::Read => {
                if let Some(flow) = kernel.told.pop_front() {
                    tally.ended(&flow, now, || Some(web()));
                }
            }
            Op::Break => under_way.take().into_iter().for_each(|_| tally.dump_ended(false)),
            Op::Dump => match &mut under_way {
                None => {
                    tally.dump_begins(now);
                    under_way = Some(Dump { at: 0, made: kernel.piece(0) });
                }
                Some(dump) => {
                    dump.at += PIECE;
                    let received = std::mem::replace(&mut dump.made, kernel.piece(dump.at));
                    read_all(&mut kernel, &mut tally, now);
                    received.iter().for_each(|flow| tally.seen(flow, || Some(web())));
                    if dump.at >= SLOTS {
                        tally.dump_ended(true);
                        under_way = None;
                    }
                }
            },
            _ => {}
        }
        kernel.act(*op);
        let counted = total(&tally);
        assert!(counted >= last, "a counter only grows");
        assert!(counted <= kernel.carried, "no byte is counted twice");
        last = counted;
    }
    let live = kernel.live();
    (0..SLOTS).for_each(|slot| kernel.act(Op::End(slot)));
    read_all(&mut kernel, &mut tally, now);
    let lives = tally.flows.values().filter(|it| matches!(it, State::Live { .. })).count();
    assert_eq!(tally.series.values().map(|it| it.live).sum::<usize>(), lives);
    let counted = total(&tally);
    assert!(counted <= kernel.carried && counted + live >= last);
    (counted, kernel.carried)
}

proptest! {
    /// Whatever happens in between, and in whatever order it is heard of.
    #[test]
    fn each_byte_is_counted_once(before in ops(), ops in ops()) {
        let (counted, carried) = play(&before, &ops, false);
        prop_assert_eq!(counted, carried);
    }

    #[test]
    fn lost_ends_are_lost_bytes_and_never_more(before in ops(), ops in ops()) {
        play(&before, &ops, true);
    }
}
