//! Whether this kernel is new enough for the proxy's rules.

use nix::sys::utsname::uname;

/// The oldest kernel whose nftables has what the rules need: concatenated maps with typed data, and
/// sets with several expressions (kube-proxy's nftables mode asks for the same, KEP-3866).
const OLDEST: (u32, u32) = (5, 13);

/// The kernel is too old.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "this is Linux {release}; weft proxy needs {}.{} or newer for its nftables maps: update the kernel, or use --mode iptables",
    OLDEST.0, OLDEST.1
)]
pub struct TooOld {
    /// What the kernel says of itself.
    pub release: String,
}

/// Whether the running kernel has what the nftables mode needs.
///
/// # Errors
/// If it is too old. What cannot be read is taken for new enough: the rules will tell.
pub fn check() -> Result<(), TooOld> {
    let Ok(names) = uname() else { return Ok(()) };
    judge(&names.release().to_string_lossy())
}

fn judge(release: &str) -> Result<(), TooOld> {
    match version(release) {
        Some(version) if version < OLDEST => Err(TooOld { release: release.to_owned() }),
        _ => Ok(()),
    }
}

/// `6.1.0-18-amd64` is 6.1.
fn version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(str::parse);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernels_older_than_the_maps_are_refused_by_name() {
        let table = [
            ("5.13.0", true),
            ("5.12.19-generic", false),
            ("4.19.0-26-amd64", false),
            ("6.1.0-18-amd64", true),
            ("6.18.44", true),
            ("10.0-rc1", true),
            ("5.4", false),
            ("mystery", true),
            ("6", true),
        ];
        for (release, new_enough) in table {
            assert_eq!(judge(release).is_ok(), new_enough, "{release}");
        }
        assert_eq!(
            judge("5.4.0-1").unwrap_err().to_string(),
            "this is Linux 5.4.0-1; weft proxy needs 5.13 or newer for its nftables maps: update the kernel, or \
             use --mode iptables"
        );
        check().expect("the tests need such a kernel themselves");
    }
}
