//! Certificates for etcd and its clients, made by the openssl command.

use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

/// A CA and what it signed, in files that go with it.
pub(crate) struct Certs {
    dir: TempDir,
}

/// A certificate and its key.
pub(crate) struct Pair {
    pub(crate) cert: PathBuf,
    pub(crate) key: PathBuf,
}

impl Certs {
    /// A new CA.
    pub(crate) fn new() -> Certs {
        let certs =
            Certs { dir: TempDir::with_prefix("weft-t-store-certs-").expect("a temporary directory") };
        let ca = certs.pair("ca");
        openssl(&[
            &["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"][..],
            &["-days", "2", "-subj", "/CN=weft test CA", "-keyout", text(&ca.key), "-out", text(&ca.cert)],
        ]);
        certs
    }

    /// The CA's certificate.
    pub(crate) fn ca(&self) -> PathBuf {
        self.pair("ca").cert
    }

    /// A certificate for a server at this address, or for a client.
    pub(crate) fn signed(&self, name: &str, address: &str) -> Pair {
        let (ca, pair) = (self.pair("ca"), self.pair(name));
        let request = self.dir.path().join(format!("{name}.csr"));
        let extensions = self.dir.path().join(format!("{name}.ext"));
        std::fs::write(
            &extensions,
            format!("subjectAltName=IP:{address}\nextendedKeyUsage=serverAuth,clientAuth\n"),
        )
        .expect("a file");
        openssl(&[
            &["req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"][..],
            &["-subj", &format!("/CN={name}"), "-keyout", text(&pair.key), "-out", text(&request)],
        ]);
        openssl(&[
            &["x509", "-req", "-days", "2", "-in", text(&request), "-extfile", text(&extensions)][..],
            &["-CA", text(&ca.cert), "-CAkey", text(&ca.key), "-CAcreateserial", "-out", text(&pair.cert)],
        ]);
        pair
    }

    fn pair(&self, name: &str) -> Pair {
        let file = |ending| self.dir.path().join(format!("{name}.{ending}"));
        Pair { cert: file("crt"), key: file("key") }
    }
}

/// The path for a command line.
pub(crate) fn text(path: &Path) -> &str {
    path.to_str().expect("our own paths are UTF-8")
}

fn openssl(arguments: &[&[&str]]) {
    let output = Command::new("openssl").args(arguments.concat()).output().expect("openssl runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}
