//! Servers that say who they are, and clients that tell an answer from a refusal and from silence.

use std::net::SocketAddr;
use std::time::Duration;

use weft_lab::traffic::{Answer, Protocol};
use weft_lab::{Lab, LabError, within};

const SOON: Duration = Duration::from_secs(30);

#[test]
fn answers_refusals_and_silence_are_told_apart() -> Result<(), LabError> {
    let lab = Lab::new("answers").hosts(["ash", "birch"]).etcd_members(0).up()?;
    let (ash, birch) = (lab.host("ash"), lab.host("birch"));
    let server = birch.server()?;
    for protocol in [Protocol::Tcp, Protocol::Udp] {
        for (to, from) in [(birch.v4().into(), ash.v4().into()), (birch.v6().into(), ash.v6().into())] {
            let at = SocketAddr::new(to, server.port());
            let answer = Answer::From { server: "birch".into(), seen_as: from };
            assert_eq!(ash.asks(at, protocol, SOON), answer, "{protocol} {at}");
            let answers = ash.asks_often(at, protocol, SOON, 5);
            assert_eq!((answers.by_server["birch"], answers.others.len()), (5, 0));
            assert_eq!(ash.exchange(at, protocol, &[7; 50_000])?, "birch");
            assert_eq!(ash.asks(SocketAddr::new(to, 1), protocol, SOON), Answer::Refused, "{protocol} {to}");
        }
    }
    let load = ash.load(SocketAddr::new(birch.v4().into(), server.port()), Protocol::Tcp, SOON)?;
    let (who, talk) =
        ash.converse_with(SocketAddr::new(birch.v6().into(), server.port()), Duration::from_millis(5))?;
    assert_eq!(who, "birch");
    within(SOON, || load.so_far().answered() > 10 && talk.so_far().received > 10);
    load.stop_without_failure()?;
    talk.stop_without_loss()?;

    birch.run("nft add table inet t; nft 'add chain inet t c { type filter hook input priority 0; }'; nft add rule inet t c tcp dport != 22 drop").ok()?;
    let silent = ash.asks(
        SocketAddr::new(birch.v4().into(), server.port()),
        Protocol::Tcp,
        Duration::from_millis(500),
    );
    assert_eq!(silent, Answer::Silent);
    drop(server);
    lab.down()
}
