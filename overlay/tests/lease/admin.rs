//! What an operator sees and does.

use weft_overlay::admin::{AdminError, For, State, drain, list, release, reserve};
use weft_overlay::model::NodeId;
use weft_store::Store;

use crate::support::{Network, WIDE, subnet};

fn node(name: &str) -> NodeId {
    NodeId::try_from(name.to_owned()).expect("a good id")
}

#[tokio::test]
async fn the_list_says_how_every_subnet_stands() {
    let (store, control) = Store::memory();
    let network = Network::new(store, WIDE).await;
    let (store, prefix) = (&network.store, &network.prefix);
    let live = network.start(network.wish("live", 1));
    let silent = network.start(network.wish("silent", 2));
    let expired = network.start(network.wish("expired", 3));
    let released = network.start(network.wish("released", 4));
    let mine = [live.leased().await, silent.leased().await, expired.leased().await, released.leased().await];
    network.until("all alive", |registry| registry.live().count() == 4).await;
    drop((silent, expired, released));
    for name in ["silent", "expired", "released"] {
        network.delete(&prefix.live(&node(name))).await;
    }
    control.expire(network.registry().await.lease(&mine[2]).and_then(|entry| entry.lease).unwrap());
    release(store, prefix, mine[3], false).await.unwrap();
    let theirs = subnet("10.42.200.0/24");
    network.put(&prefix.lease(&subnet("10.42.201.0/24")), "garbage").await;
    let lease = store.grant(std::time::Duration::from_secs(3600)).await.unwrap();
    let value = r#"{"PublicIP":"198.51.100.9","PublicIPv6":null,"BackendType":"vxlan"}"#;
    store.commit(weft_store::Txn::new().put(prefix.lease(&theirs), value, Some(lease))).await.unwrap();
    reserve(store, prefix, subnet("10.42.202.0/24"), &For::Node(node("to-come"))).await.unwrap();
    drain(store, prefix, &node("live"), true).await.unwrap();

    let rows = list(store, prefix).await.unwrap();
    let row = |subnet| rows.iter().find(|row| row.subnet == subnet).expect("listed");
    let hours = |subnet| row(subnet).expires_in.map(|left| left.div_ceil(3600));
    let table = [
        (mine[0], State::Live, Some("live"), Some(24)),
        (mine[1], State::Silent, Some("silent"), Some(24)),
        (mine[2], State::Expired, Some("expired"), Some(7 * 24)),
        (mine[3], State::Released, Some("released"), Some(7 * 24)),
        (theirs, State::Foreign, None, Some(1)),
        (subnet("10.42.201.0/24"), State::Unreadable, None, None),
        (subnet("10.42.202.0/24"), State::Reserved, Some("to-come"), None),
    ];
    assert_eq!(rows.len(), table.len());
    for (subnet, state, owner, left) in table {
        assert_eq!((row(subnet).state, hours(subnet)), (state, left), "{subnet}");
        assert_eq!(row(subnet).node.as_ref().map(NodeId::as_str), owner, "{subnet}");
        assert_eq!(row(subnet).draining, owner == Some("live"));
    }
    assert_eq!(row(theirs).backend, "vxlan");
    let json = serde_json::to_value(row(mine[0])).unwrap();
    assert_eq!(json["subnet"], mine[0].to_string());
    assert_eq!(json["state"], "live");
}

#[tokio::test]
async fn nobodys_subnet_is_given_away() {
    let network = Network::new(Store::memory().0, WIDE).await;
    let (store, prefix) = (&network.store, &network.prefix);
    let ash = network.start(network.wish("ash", 1));
    let mine = ash.leased().await;
    let taken = reserve(store, prefix, mine, &For::Node(node("elm"))).await;
    assert!(matches!(taken, Err(AdminError::Taken { .. })), "{taken:?}");
    assert!(taken.unwrap_err().to_string().contains("belongs to node ash"));
    let foreign = subnet("10.42.200.0/24");
    network.put(&prefix.lease(&foreign), r#"{"PublicIP":"198.51.100.9","BackendType":"vxlan"}"#).await;
    let refused = release(store, prefix, foreign, false).await;
    assert!(matches!(refused, Err(AdminError::Foreign { .. })), "{refused:?}");
    let taken = reserve(store, prefix, foreign, &For::Address([192, 0, 2, 1].into())).await;
    assert!(matches!(taken, Err(AdminError::Taken { .. })), "{taken:?}");
    for odd in ["10.43.0.0/24", "10.42.0.0/17", "10.42.4.0/25"] {
        let refused = reserve(store, prefix, subnet(odd), &For::Holder).await;
        assert!(matches!(refused, Err(AdminError::Unfit(_))), "{odd}: {refused:?}");
    }
    let unknown = release(store, prefix, subnet("10.42.77.0/24"), false).await;
    assert!(matches!(unknown, Err(AdminError::Unknown(_))), "{unknown:?}");

    release(store, prefix, foreign, true).await.unwrap();
    release(store, prefix, mine, false).await.unwrap();
    let state = ash.until("moved", |state| state.confirmed && state.subnet != Some(mine)).await;
    assert_eq!(state.lost.map(|loss| loss.subnet), Some(mine));
}

#[tokio::test]
async fn a_reservation_is_released_like_a_lease() {
    let network = Network::new(Store::memory().0, WIDE).await;
    let (store, prefix) = (&network.store, &network.prefix);
    let kept = subnet("10.42.88.0/24");
    for whom in [For::Node(node("ash")), For::Address([192, 0, 2, 9].into()), For::Holder] {
        reserve(store, prefix, kept, &whom).await.unwrap();
        let rows = list(store, prefix).await.unwrap();
        assert_eq!(rows[0].state, State::Reserved, "{whom:?}");
        assert_eq!(rows[0].expires_in, None);
        release(store, prefix, kept, false).await.unwrap();
        assert!(network.registry().await.lease(&kept).is_none());
    }
}
