//! What the contestants run on: three layers, the same as one directory, the same as an OCI image, a workspace, OCI
//! bundles, and a seccomp program for bwrap.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::account::succeed;

/// The paths, all inside one directory of the measuring user.
#[derive(Debug, Clone)]
pub(crate) struct Files {
    pub(crate) directory: PathBuf,
    /// Lowest first.
    pub(crate) layers: [PathBuf; 3],
    /// The layers flattened, with mount points.
    pub(crate) root: PathBuf,
    pub(crate) image: PathBuf,
    pub(crate) workspace: PathBuf,
    pub(crate) filter: PathBuf,
}

/// Where the profile that podman gives to crun lies, in Debian's containers-common.
const SECCOMP_PROFILE: &str = "/usr/share/containers/seccomp.json";

impl Files {
    pub(crate) fn at(directory: &Path) -> Self {
        let at = |name: &str| directory.join(name);
        Self {
            directory: directory.to_path_buf(),
            layers: [at("layer-1"), at("layer-2"), at("layer-3")],
            root: at("root"),
            image: at("image"),
            workspace: at("workspace"),
            filter: at("filter.bpf"),
        }
    }

    pub(crate) fn make(&self) -> Result<()> {
        let [programs, settings, application] = &self.layers;
        fs::create_dir_all(programs.join("bin"))?;
        fs::copy("/bin/busybox", programs.join("bin/busybox")).context("copy /bin/busybox")?;
        for name in ["true", "touch", "sleep", "sh"] {
            symlink("busybox", programs.join("bin").join(name))?;
        }
        fs::create_dir_all(settings.join("etc"))?;
        fs::write(settings.join("etc/passwd"), "root:x:0:0::/root:/bin/sh\nuser:x:1000:1000::/home:/bin/sh\n")?;
        fs::create_dir_all(application.join("opt"))?;
        fs::write(application.join("opt/application"), "the third layer\n")?;
        for layer in &self.layers {
            succeed(Command::new("cp").arg("-a").arg(layer.join(".")).arg(&self.root))?;
        }
        for name in ["proc", "sys", "dev", "tmp", "run", "scratch", "home", "workspace"] {
            fs::create_dir(self.root.join(name))?;
        }
        fs::create_dir(&self.workspace)?;
        fs::write(&self.filter, bpf())?;
        self.make_image()
    }

    fn make_image(&self) -> Result<()> {
        let mut layers = Vec::new();
        let mut diff_ids = Vec::new();
        fs::create_dir_all(self.image.join("blobs/sha256"))?;
        for layer in &self.layers {
            let archive = self.directory.join("layer.tar");
            let mut tar = Command::new("tar");
            tar.args(["--sort=name", "--owner=0", "--group=0", "--numeric-owner", "--create", "--file"]).arg(&archive);
            succeed(tar.arg("--directory").arg(layer).arg("."))?;
            let descriptor = self.blob(&archive, "application/vnd.oci.image.layer.v1.tar")?;
            diff_ids.push(descriptor["digest"].clone());
            layers.push(descriptor);
        }
        let architecture = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
        let config = json!({
            "architecture": architecture, "os": "linux",
            "config": { "Cmd": ["/bin/true"], "Env": ["PATH=/bin"] },
            "rootfs": { "type": "layers", "diff_ids": diff_ids },
        });
        let config = self.json_blob(&config, "application/vnd.oci.image.config.v1+json")?;
        let manifest_type = "application/vnd.oci.image.manifest.v1+json";
        let manifest = json!({ "schemaVersion": 2, "mediaType": manifest_type, "config": config, "layers": layers });
        let mut manifest = self.json_blob(&manifest, manifest_type)?;
        manifest["annotations"] = json!({ "org.opencontainers.image.ref.name": "latest" });
        let index = json!({ "schemaVersion": 2, "manifests": [manifest] });
        fs::write(self.image.join("index.json"), index.to_string())?;
        fs::write(self.image.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#)?;
        Ok(())
    }

    fn json_blob(&self, value: &Value, media_type: &str) -> Result<Value> {
        let file = self.directory.join("blob.json");
        fs::write(&file, value.to_string())?;
        self.blob(&file, media_type)
    }

    /// Moves `file` into the image and describes it.
    fn blob(&self, file: &Path, media_type: &str) -> Result<Value> {
        let output = Command::new("sha256sum").arg(file).output().context("start sha256sum")?;
        let said = String::from_utf8_lossy(&output.stdout);
        let digest = said.split(' ').next().unwrap_or_default();
        ensure!(digest.len() == 64, "sha256sum {}: {}", file.display(), output.status);
        let size = fs::metadata(file)?.len();
        fs::rename(file, self.image.join("blobs/sha256").join(digest))?;
        Ok(json!({ "mediaType": media_type, "digest": format!("sha256:{digest}"), "size": size }))
    }

    /// An OCI bundle as `crun spec --rootless` would start it, with the box's mounts and no cgroup section.
    pub(super) fn bundle(&self, name: &str, payload: &[&str], seccomp: Option<&Value>) -> Result<PathBuf> {
        let tmpfs = |path: &str| json!({ "destination": path, "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "nodev"] });
        let capabilities: [&str; 0] = [];
        let sets = ["bounding", "effective", "inheritable", "permitted", "ambient"];
        let capabilities: Value = sets.iter().map(|set| ((*set).to_owned(), json!(capabilities))).collect();
        let namespaces = ["pid", "network", "ipc", "uts", "user", "mount", "cgroup"];
        let namespaces: Vec<Value> = namespaces.iter().map(|kind| json!({ "type": kind })).collect();
        let (uid, gid) = ids()?;
        let mut spec = json!({
            "ociVersion": "1.0.0",
            "process": {
                "user": { "uid": 0, "gid": 0 }, "args": payload, "env": ["PATH=/bin"], "cwd": "/workspace",
                "capabilities": capabilities, "noNewPrivileges": true,
                "rlimits": [{ "type": "RLIMIT_NOFILE", "hard": 1024, "soft": 1024 }],
            },
            "root": { "path": self.root, "readonly": true },
            "hostname": "box",
            "mounts": [
                { "destination": "/proc", "type": "proc", "source": "proc" },
                { "destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755", "size=64k"] },
                { "destination": "/dev/pts", "type": "devpts", "source": "devpts",
                  "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"] },
                { "destination": "/dev/shm", "type": "tmpfs", "source": "shm", "options": ["nosuid", "noexec", "nodev"] },
                { "destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["nosuid", "noexec", "nodev", "ro"] },
                tmpfs("/tmp"), tmpfs("/run"), tmpfs("/scratch"), tmpfs("/home"),
                { "destination": "/workspace", "type": "none", "source": self.workspace, "options": ["rbind", "nosuid", "nodev"] },
            ],
            "linux": {
                "uidMappings": [{ "containerID": 0, "hostID": uid, "size": 1 }],
                "gidMappings": [{ "containerID": 0, "hostID": gid, "size": 1 }],
                "namespaces": namespaces,
                "maskedPaths": ["/proc/acpi", "/proc/asound", "/proc/kcore", "/proc/keys", "/proc/latency_stats",
                    "/proc/timer_list", "/proc/sched_debug", "/proc/scsi"],
                "readonlyPaths": ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"],
            },
        });
        if let Some(seccomp) = seccomp {
            spec["linux"]["seccomp"] = seccomp.clone();
        }
        let bundle = self.directory.join(name);
        fs::create_dir_all(&bundle)?;
        fs::write(bundle.join("config.json"), spec.to_string())?;
        Ok(bundle)
    }
}

/// The effective ids of this process.
fn ids() -> Result<(u32, u32)> {
    use std::os::unix::fs::MetadataExt;
    let myself = fs::metadata("/proc/self").context("look at /proc/self")?;
    Ok((myself.uid(), myself.gid()))
}

/// The distribution's seccomp profile as a spec wants it, for a process without capabilities; `None` where there is
/// none.
pub(super) fn seccomp() -> Option<Value> {
    oci_seccomp(&serde_json::from_slice(&fs::read(SECCOMP_PROFILE).ok()?).ok()?)
}

fn oci_seccomp(profile: &Value) -> Option<Value> {
    let architecture = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
    // What a rule is for: a capability, which the payload has not, or architectures.
    let applies = |rule: &&Value| {
        let for_capability = rule["includes"]["caps"].as_array().is_some_and(|caps| !caps.is_empty());
        let elsewhere = |list: &Vec<Value>| !list.iter().any(|name| name == architecture);
        let listed = rule["includes"]["arches"].as_array().is_some_and(elsewhere);
        let excluded = rule["excludes"]["arches"].as_array().is_some_and(|list| !elsewhere(list));
        !for_capability && !listed && !excluded
    };
    let rules = profile["syscalls"].as_array()?.iter().filter(applies).map(|rule| {
        let mut spec = json!({ "names": rule["names"], "action": rule["action"] });
        for key in ["args", "errnoRet"] {
            if rule.get(key).is_some_and(|value| !value.is_null()) {
                spec[key] = rule[key].clone();
            }
        }
        spec
    });
    let architectures = if cfg!(target_arch = "aarch64") {
        json!(["SCMP_ARCH_AARCH64", "SCMP_ARCH_ARM"])
    } else {
        json!(["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"])
    };
    Some(json!({
        "defaultAction": profile["defaultAction"], "defaultErrnoRet": profile["defaultErrnoRet"],
        "architectures": architectures, "syscalls": rules.collect::<Vec<_>>(),
    }))
}

/// 129 instructions of seccomp BPF that allow everything by a binary search over the number, as the floor's does.
fn bpf() -> Vec<u8> {
    const LOAD: u16 = 0x20;
    const JUMP_IF_AT_LEAST: u16 = 0x35;
    const RETURN: u16 = 0x06;
    const ALLOW: u32 = 0x7fff_0000;
    let mut program = Vec::new();
    let mut push = |code: u16, yes: u8, value: u32| {
        program.extend(code.to_ne_bytes());
        program.extend([yes, 0]);
        program.extend(value.to_ne_bytes());
    };
    push(LOAD, 0, 0);
    let mut open = vec![(0u32, 512u32)];
    while let Some((low, high)) = open.pop() {
        if high - low <= 8 {
            push(RETURN, 0, ALLOW);
            continue;
        }
        let middle = low + (high - low) / 2;
        // The left half is a full tree of this many instructions, at most 63.
        let skip = u8::try_from((high - low) / 8 - 1).unwrap_or(u8::MAX);
        push(JUMP_IF_AT_LEAST, skip, middle);
        open.extend([(middle, high), (low, middle)]);
    }
    program
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_jump_of_the_filter_ends_at_a_return() {
        let program: Vec<[u8; 8]> = bpf().chunks(8).map(|bytes| bytes.try_into().unwrap()).collect();
        assert_eq!(program.len(), 128);
        for number in 0..600u32 {
            let mut at = 1;
            while program[at][0] == 0x35 {
                let value = u32::from_ne_bytes(program[at][4..].try_into().unwrap());
                at += 1 + if number >= value { usize::from(program[at][2]) } else { 0 };
            }
            assert_eq!(program[at][0], 0x06);
        }
    }

    #[test]
    fn rules_for_capabilities_and_for_other_machines_are_left_out() {
        let profile = json!({ "defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 38, "syscalls": [
            { "names": ["read"], "action": "SCMP_ACT_ALLOW", "args": [], "includes": {}, "excludes": {} },
            { "names": ["bpf"], "action": "SCMP_ACT_ALLOW", "args": [], "includes": { "caps": ["CAP_BPF"] } },
            { "names": ["s390_pci_mmio_read"], "action": "SCMP_ACT_ALLOW", "includes": { "arches": ["s390x"] } },
            { "names": ["bpf"], "action": "SCMP_ACT_ERRNO", "errnoRet": 1, "excludes": { "caps": ["CAP_BPF"] } },
        ]});
        let spec = oci_seccomp(&profile).unwrap();
        assert_eq!(spec["syscalls"].as_array().unwrap().len(), 2);
        assert_eq!(spec["syscalls"][1]["errnoRet"], 1);
    }
}
