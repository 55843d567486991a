//! The rules as `nft` lists them. BLESS=1 rewrites tests/cases/firewall; read the difference.

use weft_kernel::net::Mac;
use weft_overlay::config::Backend;
use weft_overlay::firewall::{Surroundings, Tunnel};
use weft_overlay::model::Model;

use crate::world::{World, around, ip, model, net, vxlan};

fn golden(case: &str, model: &Model, around: &Surroundings) {
    let mut world = World::new();
    world.machine("host", &[]);
    world.apply("host", model, around);
    let text = world.run("host", "nft -s list table inet weft-blue");
    let path = format!("{}/tests/cases/firewall/{case}.nft", env!("CARGO_MANIFEST_DIR"));
    if std::env::var_os("BLESS").is_some() {
        std::fs::write(&path, &text).unwrap();
    }
    assert_eq!(text, std::fs::read_to_string(&path).unwrap(), "{path} says otherwise; BLESS=1 rewrites it");
}

#[test]
fn vxlan_dual_stack() {
    let model = model(1, &[2, 3], vxlan(false));
    let mut around = around(&model);
    around.pods.insert("wefta1".parse().unwrap(), vec![net("10.42.1.2/32"), net("fd42:0:0:1::2/128")]);
    golden("vxlan-dual-stack", &model, &around);
}

#[test]
fn vxlan_ipv4_with_listed_networks_and_a_bridge() {
    let mut model = model(1, &[2, 3], vxlan(true));
    model.config.v6 = None;
    model.me.public_v6 = None;
    model.me.subnet = model.me.subnet.map(|subnet| weft_overlay::model::Subnet { v6: None, ..subnet });
    model.me.underlay.addresses.retain(|network| network.is_ipv4());
    model.masquerade_random = false;
    model.non_masquerade = [net("10.0.0.0/8"), net("192.168.0.0/16"), net("10.1.0.0/16")].into();
    model.extra_sources = [net("172.30.0.0/16")].into();
    let mut around = around(&model);
    around.pods.insert("weft-br".parse().unwrap(), vec![net("10.42.1.0/24")]);
    golden("vxlan-ipv4-listed-bridge", &model, &around);
}

#[test]
fn host_gw() {
    let model = model(1, &[2, 3], Backend::HostGw);
    let mut around = around(&model);
    around.neighbours.insert(ip("192.0.2.2"), Mac([2, 0, 0, 0, 0, 2]));
    golden("host-gw", &model, &around);
}

#[test]
fn udp_over_ipv6_only() {
    let mut model = model(1, &[2], Backend::Udp { port: 8285 });
    model.config.v4 = None;
    model.me.public_v4 = None;
    model.me.subnet = model.me.subnet.map(|subnet| weft_overlay::model::Subnet { v4: None, ..subnet });
    golden("udp-ipv6", &model, &around(&model));
}

#[test]
fn two_tunnels_and_no_lease() {
    let mut model = model(1, &[2], vxlan(false));
    model.me.subnet = None;
    let mut around = around(&model);
    around.tunnels.push(Tunnel::Udp { port: 8285 });
    golden("two-tunnels-no-lease", &model, &around);
}

#[test]
fn everything_off() {
    let mut model = model(1, &[2], Backend::Alloc);
    model.masquerade = false;
    model.anti_spoofing = false;
    golden("off", &model, &around(&model));
}
