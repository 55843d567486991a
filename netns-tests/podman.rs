//! weft's plugin under a real container runtime: podman with its CNI backend runs containers on hosts
//! of a lab. They get addresses of their host's subnet, are reached from everywhere, and leave nothing.

use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

use serde_json::json;
use weft_lab::{Host, Lab, LabError, Output, Running, within};
use weft_overlay::attach::records::{Record, Records};

const WEFT: &str = env!("CARGO_BIN_EXE_weft");
const IMAGE: &str = "busybox:story";
/// What the containers' network names as its name server; nobody asks it.
const NAME_SERVER: &str = "10.42.0.53";
const SOON: Duration = Duration::from_secs(30);
/// A host's podman with a process and mount namespace of its own, as on a machine of its own. All
/// containers end with it.
struct Podman<'a> {
    host: &'a Host,
    machine: Running,
}

/// The first process there. podman's files are under `/mnt` because it refuses a run root whose path is
/// longer than 50 characters; what is in memory does not survive a power cut. The control groups are hidden
/// because they are the whole machine's, in whatever version it has them. The namespaces that podman
/// makes are seen by the plugin, which runs there, and not by the daemon, which does not.
const INIT: &str = "set -e
    mount --bind \"$1\" /mnt
    mkdir -p /mnt/run /mnt/tmp /mnt/cni /var/lib/cni /run/crun
    for dir in /mnt/run /mnt/tmp /run/netns /run/crun /sys/fs/cgroup; do
        mount -t tmpfs tmpfs $dir
    done
    mount --bind /mnt/cni /var/lib/cni
    echo ready
    while :; do sleep 1000; done";

impl<'a> Podman<'a> {
    fn new(host: &'a Host) -> Result<Self, LabError> {
        let dir = host.dir().join("podman");
        write_files(host, &dir).expect("files of the lab");
        let machine = host.spawn(&[
            "unshare",
            "--mount",
            "--pid",
            "--fork",
            "--kill-child",
            "--mount-proc",
            "--propagation=private",
            "sh",
            "-c",
            INIT,
            "init",
            &dir.display().to_string(),
        ])?;
        within(SOON, || {
            let ready = machine.stdout_so_far() == "ready\n";
            if ready { Ok(()) } else { Err(machine.stderr_so_far()) }
        });
        let podman = Self { host, machine };
        if !podman.run(&["image", "exists", IMAGE]).success() {
            host.run(format!("tar --create --directory {0}/image --file {0}/image.tar .", dir.display()))
                .ok()?;
            podman.run(&["import", "--quiet", "/mnt/image.tar", IMAGE]).ok()?;
        }
        Ok(podman)
    }

    fn run(&self, args: &[&str]) -> Output {
        let namespaces = format!("/proc/{}/ns", self.machine.pid());
        let (mount, pid) =
            (format!("--mount={namespaces}/mnt"), format!("--pid={namespaces}/pid_for_children"));
        let enter = ["nsenter", &mount, &pid, "env", "CONTAINERS_CONF=/mnt/containers.conf"];
        self.host
            .run_args(&[&enter, &["CONTAINERS_STORAGE_CONF=/mnt/storage.conf", "podman"][..], args].concat())
    }

    /// Starts a web server that says its own name.
    fn serve(&self, name: &str, further: &[&str]) -> Result<Container<'_>, LabError> {
        let line = format!("echo {name} > /srv/index.html && exec busybox httpd -f -p 80 -h /srv");
        let run = ["run", "--detach", "--stop-signal=KILL", "--name", name];
        let id = self.run(&[&run, further, &[IMAGE, "sh", "-c", &line]].concat()).ok()?;
        Ok(Container { podman: self, name: name.into(), id: id.trim().into(), address: self.address(name)? })
    }

    fn address(&self, name: &str) -> Result<IpAddr, LabError> {
        let found = self.run(&["container", "inspect", name]).json()?;
        let address = &found[0]["NetworkSettings"]["Networks"]["weft"]["IPAddress"];
        let parsed = address.as_str().and_then(|address| address.parse().ok());
        parsed.ok_or_else(|| LabError::Traffic { what: format!("{name} has no address: {found}") })
    }
}

/// What a person would write into `/etc`, and an image of nothing but a static busybox.
fn write_files(host: &Host, dir: &Path) -> std::io::Result<()> {
    let network = json!({
        "cniVersion": "1.0.0",
        "name": "weft",
        "plugins": [{
            "type": "weft-cni",
            "network": "weft",
            "runDir": host.run_dir(),
            "stateDir": host.state_dir(),
            "dns": { "nameservers": [NAME_SERVER] },
        }, {
            "type": "portmap",
            "capabilities": { "portMappings": true },
        }],
    });
    // Control groups and events would be the whole machine's.
    let settings = "[containers]\ncgroups = \"disabled\"\ndefault_ulimits = []\n\
        [engine]\nruntime = \"crun\"\ncgroup_manager = \"cgroupfs\"\nevents_logger = \"none\"\n\
        lock_type = \"file\"\ntmp_dir = \"/mnt/tmp\"\n\
        [network]\nnetwork_backend = \"cni\"\ncni_plugin_dirs = [\"/mnt/plugins\", \"/usr/lib/cni\"]\n\
        network_config_dir = \"/mnt/net.d\"\ndefault_network = \"weft\"\n";
    let storage = "[storage]\ndriver = \"vfs\"\ngraphroot = \"/mnt/graph\"\nrunroot = \"/mnt/run\"\n";
    for dir in ["plugins", "net.d", "image/bin", "image/srv"].map(|name| dir.join(name)) {
        std::fs::create_dir_all(dir)?;
    }
    let plugin = dir.join("plugins/weft-cni");
    if !plugin.exists() {
        std::os::unix::fs::symlink(WEFT, plugin)?;
    }
    std::fs::write(dir.join("net.d/10-weft.conflist"), network.to_string())?;
    std::fs::write(dir.join("containers.conf"), settings)?;
    std::fs::write(dir.join("storage.conf"), storage)?;
    std::fs::copy("/usr/bin/busybox", dir.join("image/bin/busybox"))?;
    let sh = dir.join("image/bin/sh");
    if sh.exists() { Ok(()) } else { std::os::unix::fs::symlink("busybox", sh) }
}

/// A container that says its name on port 80.
struct Container<'a> {
    podman: &'a Podman<'a>,
    name: String,
    id: String,
    address: IpAddr,
}

impl Container<'_> {
    fn host(&self) -> &Host {
        self.podman.host
    }

    fn record(&self) -> Option<Record> {
        records(self.host()).into_iter().find(|record| record.id == self.id)
    }

    /// The host's end of its wire, if it is there, and the route to it.
    fn wire(&self, record: &Record) -> (bool, String) {
        let link = self.host().run(format!("ip link show dev {}", record.link)).success();
        (link, self.host().run(format!("ip route show {}", self.address)).stdout)
    }

    /// The other one's name, as its web server says it.
    fn asks(&self, other: &Self) -> Result<(), LabError> {
        let url = format!("http://{}/", other.address);
        let ask = ["exec", &self.name, "busybox", "timeout", "5", "busybox", "wget", "-q", "-O", "-", &url];
        other.said_it(self.podman.run(&ask))
    }

    fn is_asked_by(&self, place: &Host) -> Result<(), LabError> {
        self.is_asked_at(place, &self.address.to_string())
    }

    fn is_asked_at(&self, place: &Host, authority: &str) -> Result<(), LabError> {
        let url = format!("http://{authority}/");
        self.said_it(place.run_args(&["busybox", "timeout", "5", "busybox", "wget", "-q", "-O", "-", &url]))
    }

    fn said_it(&self, answer: Output) -> Result<(), LabError> {
        let said = answer.ok()?;
        let what = format!("{} says {said:?}", self.name);
        if said.trim() == self.name { Ok(()) } else { Err(LabError::Traffic { what }) }
    }

    /// It runs again after its host did, attached as before.
    fn restarted<'b>(&self, podman: &'b Podman<'b>) -> Result<Container<'b>, LabError> {
        podman.run(&["start", &self.name]).ok()?;
        let (name, id) = (self.name.clone(), self.id.clone());
        Ok(Container { podman, address: podman.address(&name)?, name, id })
    }

    /// It is attached as ADD says: an address of the host's subnet, recorded, a link and a route.
    #[track_caller]
    fn expect_attached(&self) {
        let subnet = self.host().subnet().expect("the host has a lease");
        assert!(subnet.contains(self.address), "{} in {subnet}", self.address);
        let record = self.record().unwrap_or_else(|| panic!("{} is not recorded", self.name));
        assert_eq!((record.ifname.as_str(), &record.addresses), ("eth0", &vec![self.address]));
        let (link, route) = self.wire(&record);
        assert!(link && route.contains(&format!("dev {} proto 87", record.link)), "{link} {route:?}");
    }

    /// Takes it away by these commands of podman's; nothing of it is left on the host.
    #[track_caller]
    fn goes_by(&self, commands: &[&[&str]]) {
        let record = self.record().expect("it is attached");
        for command in commands {
            self.podman.run(command).ok().unwrap_or_else(|error| panic!("{error}"));
        }
        assert_eq!(self.record(), None);
        assert_eq!(self.wire(&record), (false, String::new()));
    }
}

fn records(host: &Host) -> Vec<Record> {
    Records::new(&host.state_dir().join("weft")).list().expect("records can be listed")
}

#[test]
fn podman_attaches_containers_and_takes_them_back() -> Result<(), LabError> {
    let lab = Lab::new("podman").weft(WEFT).hosts(["ash", "birch"]).up()?;
    let (ash, birch) = (lab.host("ash"), lab.host("birch"));
    let (on_ash, on_birch) = (Podman::new(&ash)?, Podman::new(&birch)?);
    let (web, second) = (on_ash.serve("web", &[])?, on_ash.serve("second", &[])?);
    let wished = birch.subnet()?.iter().nth(200).expect("a /24 has it").to_string();
    let shop = on_birch.serve("shop", &["--ip", &wished, "--publish", "8080:80"])?;
    assert_eq!(shop.address.to_string(), wished);
    // By the plugin after weft's in the chain, which goes by what weft's has answered.
    within(SOON, || shop.is_asked_at(&ash, &format!("{}:8080", birch.v4())));
    let resolver = on_birch.run(&["exec", "shop", "busybox", "cat", "/etc/resolv.conf"]).ok()?;
    assert!(resolver.contains(NAME_SERVER), "{resolver}");
    for container in [&web, &second, &shop] {
        container.expect_attached();
        within(SOON, || container.is_asked_by(container.host()));
    }
    assert_ne!(web.address, second.address);
    for (from, to) in [(&web, &shop), (&shop, &web), (&second, &web), (&shop, &second)] {
        within(SOON, || from.asks(to));
    }

    // A daemon that comes and goes between ADD and DEL loses nothing, and neither does one that dies.
    let before = records(&ash);
    ash.restart_overlay()?;
    birch.kill_overlay()?;
    birch.start_overlay()?;
    assert_eq!(records(&ash), before);
    for container in [&web, &second, &shop] {
        container.expect_attached();
    }
    within(SOON, || web.asks(&shop).and_then(|()| shop.asks(&web)));
    ash.as_planned()?;

    // DEL, while the container is kept; its address is not the next one's.
    web.goes_by(&[&["stop", "web"]]);
    second.is_asked_by(&ash)?;
    let third = on_ash.serve("third", &[])?;
    third.expect_attached();
    assert!(third.address != web.address && third.address != second.address, "{}", third.address);
    second.goes_by(&[&["stop", "second"], &["rm", "second"]]);

    // Without a daemon containers still come and go.
    ash.stop_overlay()?;
    birch.kill_overlay()?;
    third.goes_by(&[&["rm", "--force", "third"]]);
    shop.goes_by(&[&["rm", "--force", "shop"]]);
    ash.start_overlay()?;
    birch.start_overlay()?;
    for host in [&ash, &birch] {
        assert_eq!(records(host), []);
        host.as_planned()?;
        assert_eq!(host.run("ip -brief link show type veth | grep ^weft").stdout, "");
    }
    lab.down()
}

/// podman keeps a container through a power cut, and starts it in a new namespace.
#[test]
fn a_container_has_its_address_after_a_power_cut() -> Result<(), LabError> {
    let lab = Lab::new("podman-cut").weft(WEFT).hosts(["ash"]).up()?;
    let ash = lab.host("ash");
    let podman = Podman::new(&ash)?;
    let (web, second) = (podman.serve("web", &[])?, podman.serve("second", &[])?);
    within(SOON, || web.is_asked_by(&ash));
    ash.die()?;
    ash.boot()?;
    ash.start_overlay()?;

    // In the other order, so that their addresses are not simply the first ones again.
    let podman = Podman::new(&ash)?;
    for container in [&second, &web] {
        let again = container.restarted(&podman)?;
        assert_eq!(again.address, container.address);
        again.expect_attached();
        within(SOON, || again.is_asked_by(&ash));
    }
    lab.down()
}
