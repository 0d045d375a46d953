//! A registry on loopback for the one contestant that reads nothing else.

use std::fs;
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::demo::images::quiet;

/// A running registry that ends with the value.
#[derive(Debug)]
pub(super) struct Registry {
    process: Child,
    pub(super) address: String,
}

impl Registry {
    /// Starts one that keeps its blobs below `directory`, and puts the image into it as KIND:latest.
    pub(super) fn start(directory: &Path, images: &[(&'static str, PathBuf)]) -> Result<Self> {
        // Free a moment ago; whoever takes it in between makes the start fail.
        let address = TcpListener::bind("127.0.0.1:0")?.local_addr()?.to_string();
        let settings = directory.join("registry.yml");
        let root = directory.join("registry");
        // ch-image speaks nothing but TLS, and can be told to believe any certificate.
        let (key, certificate) = (directory.join("registry.key"), directory.join("registry.pem"));
        let mut make = Command::new("openssl");
        make.args(["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost", "-keyout"]);
        quiet(make.arg(&key).arg("-out").arg(&certificate))?;
        let text = format!(
            "version: 0.1\nstorage:\n  filesystem:\n    rootdirectory: {}\nhttp:\n  addr: {address}\n  tls:\n    key: {}\n    certificate: {}\nlog:\n  level: error\n",
            root.display(),
            key.display(),
            certificate.display()
        );
        fs::write(&settings, text).with_context(|| format!("write {}", settings.display()))?;
        let mut serve = Command::new("docker-registry");
        let process = serve.arg("serve").arg(&settings).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        let registry = Self { process: process.context("start docker-registry")?, address };
        registry.wait()?;
        for (kind, image) in images.iter().filter(|(kind, _)| *kind == "gzip") {
            let mut copy = Command::new("skopeo");
            copy.args(["copy", "--quiet", "--dest-tls-verify=false"]).arg(format!("oci:{}:latest", image.display()));
            quiet(copy.arg(format!("docker://{}/{kind}:latest", registry.address)))?;
        }
        Ok(registry)
    }

    fn wait(&self) -> Result<()> {
        let start = Instant::now();
        while TcpStream::connect(&self.address).is_err() {
            if start.elapsed() > Duration::from_secs(10) {
                bail!("docker-registry does not listen at {}", self.address);
            }
            // Nothing tells when it listens.
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        // It may have ended by itself; then there is nothing to do.
        self.process.kill().ok();
        self.process.wait().ok();
    }
}
