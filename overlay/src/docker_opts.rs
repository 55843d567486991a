//! Docker daemon options out of `subnet.env`: what flannel's mk-docker-opts.sh prints. Pure.

use std::fmt::Write as _;

use crate::subnet_file::SubnetFile;

/// In which form the options are wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Form {
    /// One variable per option (`-i`).
    pub individual: bool,
    /// All options in one variable (`-c`).
    pub combined: bool,
    /// That variable's name (`-k`).
    pub key: String,
    /// `--ip-masq` is wanted (not `-m`).
    pub masquerade: bool,
}

/// Why there are no options.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DockerOptsError {
    /// Docker's bridge needs an IPv4 subnet.
    #[error("the subnet file holds no FLANNEL_SUBNET: is `weft overlay` running, with IPv4?")]
    NoSubnet,
}

/// The text, a line per variable. Neither form asked for means both, as in flannel's script.
///
/// # Errors
/// When the file names no IPv4 subnet.
pub fn render(file: &SubnetFile, form: &Form) -> Result<String, DockerOptsError> {
    let subnet = file.subnet.ok_or(DockerOptsError::NoSubnet)?;
    let first = u32::from(subnet.network()).saturating_add(1);
    let mut options = vec![("BIP", format!("--bip={}/{}", std::net::Ipv4Addr::from(first), subnet.prefix()))];
    if let (Some(ours), true) = (file.masquerade, form.masquerade) {
        // What the overlay masquerades Docker must not, and the other way round.
        options.push(("IPMASQ", format!("--ip-masq={}", !ours)));
    }
    if let Some(mtu) = file.mtu {
        options.push(("MTU", format!("--mtu={mtu}")));
    }
    let both = form.individual == form.combined;
    let mut text = String::new();
    if both || form.individual {
        for (name, option) in &options {
            writeln!(text, "DOCKER_OPT_{name}=\"{option}\"").expect("a String takes every write");
        }
    }
    if both || form.combined {
        let all: String = options.iter().map(|(_, option)| format!(" {option}")).collect();
        writeln!(text, "{}=\"{all}\"", form.key).expect("a String takes every write");
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    const FORM: Form = Form { individual: false, combined: false, key: String::new(), masquerade: true };

    fn text(form: Form) -> String {
        let file = SubnetFile::parse("FLANNEL_SUBNET=10.5.72.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n");
        render(&file, &Form { key: "DOCKER_OPTS".into(), ..form }).unwrap()
    }

    #[test]
    fn the_lines_are_those_of_flannels_script() {
        let individual = "DOCKER_OPT_BIP=\"--bip=10.5.72.1/24\"\nDOCKER_OPT_IPMASQ=\"--ip-masq=false\"\nDOCKER_OPT_MTU=\"--mtu=1450\"\n";
        let combined = "DOCKER_OPTS=\" --bip=10.5.72.1/24 --ip-masq=false --mtu=1450\"\n";
        assert_eq!(text(FORM), format!("{individual}{combined}"));
        assert_eq!(text(Form { individual: true, ..FORM }), individual);
        assert_eq!(text(Form { combined: true, ..FORM }), combined);
        let unmasked = text(Form { combined: true, masquerade: false, ..FORM });
        assert_eq!(unmasked, "DOCKER_OPTS=\" --bip=10.5.72.1/24 --mtu=1450\"\n");
    }

    #[test]
    fn no_subnet_is_said_so() {
        assert_eq!(render(&SubnetFile::default(), &FORM), Err(DockerOptsError::NoSubnet));
    }
}
