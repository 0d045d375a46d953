//! Who unpacks, and the command of each. All of them run as the ordinary user, on a file system of their own.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::account::Account;

pub(super) const AGENTD: &str = "agentd run, blob and DiffID verified";

/// A version that does not know the kind, as Debian's, is no peer there: that it fails says nothing.
pub(super) const UNKNOWN: [(&str, &str); 1] = [(UMOCI, "zstd")];

const UMOCI: &str = "umoci unpack --rootless";

/// `$IMAGE` is the image layout, `$BLOBS` its layers, `$PLACE` the empty file system.
#[derive(Debug)]
pub(super) struct Contestant {
    pub(super) name: &'static str,
    script: &'static str,
    /// The kinds of image it is measured with.
    pub(super) kinds: &'static [&'static str],
    /// Runs in every n-th round only.
    pub(super) every: u32,
    /// Whether agentd has to be faster: whoever verifies what it unpacks, and pigz, which does not (docs/adr/0018).
    pub(super) is_peer: bool,
}

/// All layers at once, each into its own directory; fails when one of them does.
macro_rules! per_layer {
    ($command:literal) => {
        concat!(
            "n=0; for blob in $BLOBS; do n=$((n+1)); mkdir \"$PLACE/$n\"; (",
            $command,
            ") & all=\"$all $!\"; done; for one in $all; do wait $one || exit 1; done"
        )
    };
}

const BOTH: &[&str] = &["gzip", "zstd"];

pub(super) const ALL: [Contestant; 8] = [
    Contestant {
        name: AGENTD,
        script: r#"XDG_DATA_HOME="$PLACE/data" XDG_STATE_HOME="$PLACE/state" \
            "$PROGRAMS/agentd" run --image "oci:$IMAGE" -- /bin/busybox true"#,
        kinds: BOTH,
        every: 1,
        is_peer: true,
    },
    Contestant {
        name: "pigz -d \\| tar, layers at once, nothing verified",
        script: per_layer!(r#"pigz -dc "$blob" | tar -x -C "$PLACE/$n""#),
        kinds: &["gzip"],
        every: 1,
        is_peer: true,
    },
    Contestant {
        name: "tar, layers at once, nothing verified",
        script: per_layer!(r#"tar -x -f "$blob" -C "$PLACE/$n" $([ "$KIND" = gzip ] && echo -z || echo --zstd)"#),
        kinds: BOTH,
        every: 1,
        is_peer: false,
    },
    Contestant {
        name: "tar, layers at once, blob and content hashed by openssl",
        script: per_layer!(
            r#"mkfifo "$PLACE/$n.blob" "$PLACE/$n.tar"; for of in blob tar; do openssl dgst -sha256 "$PLACE/$n.$of" & done
            tee "$PLACE/$n.blob" < "$blob" | $([ "$KIND" = gzip ] && echo pigz || echo zstd) -dc |
            tee "$PLACE/$n.tar" | tar -x -C "$PLACE/$n"; code=$?; wait; exit $code"#
        ),
        kinds: BOTH,
        every: 1,
        is_peer: true,
    },
    Contestant {
        name: UMOCI,
        script: r#"umoci unpack --rootless --image "$IMAGE:latest" "$PLACE/bundle""#,
        kinds: BOTH,
        every: 3,
        is_peer: true,
    },
    Contestant {
        name: "skopeo copy to containers-storage",
        script: r#"buildah unshare skopeo copy --quiet "oci:$IMAGE" \
            "containers-storage:[overlay@$PLACE/root+$PLACE/run]image:latest""#,
        kinds: BOTH,
        every: 3,
        is_peer: true,
    },
    Contestant {
        name: "podman pull",
        // It leaves a process behind that keeps this file system mounted for the next podman.
        script: r#"export XDG_RUNTIME_DIR="$PLACE/runtime"; mkdir "$XDG_RUNTIME_DIR"
            podman --root "$PLACE/root" --runroot "$PLACE/run" --storage-driver overlay pull --quiet "oci:$IMAGE"
            code=$?; kill "$(cat "$XDG_RUNTIME_DIR/libpod/tmp/pause.pid")"; exit $code"#,
        kinds: BOTH,
        every: 3,
        is_peer: true,
    },
    Contestant {
        name: "charliecloud ch-image pull, from a registry",
        // It needs Debian's own python3, whatever else PATH has, and a name for its user.
        script: r#"export PATH="/usr/bin:$PATH" USER="$(id -un)" CH_IMAGE_STORAGE="$PLACE/ch" CH_IMAGE_CACHE=disabled
            ch-image pull --tls-no-verify "$REGISTRY/$KIND:latest""#,
        kinds: &["gzip"],
        every: 3,
        is_peer: true,
    },
];

/// What a contestant gets.
#[derive(Debug, Clone)]
pub(super) struct Setting<'a> {
    pub(super) kind: &'static str,
    pub(super) image: &'a Path,
    /// `host:port` of a registry that has the image, where there is one.
    pub(super) registry: Option<&'a str>,
    /// Has agentd and the floors.
    pub(super) programs: &'a Path,
}

impl Contestant {
    /// The command of one run; what it cost is written to `usage`.
    pub(super) fn command(
        &self,
        setting: &Setting<'_>,
        place: &Path,
        usage: &Path,
        account: &Account,
    ) -> Result<Command> {
        let blobs = blobs(setting.image)?;
        let blobs: Vec<_> = blobs.iter().map(|blob| blob.to_string_lossy()).collect();
        let mut command = account.command("time");
        // Seconds in user mode and in the kernel, KiB of the largest process.
        command.args(["--format", "%U %S %M", "--output"]).arg(usage).args(["sh", "-c", self.script]);
        command.env("KIND", setting.kind).env("IMAGE", setting.image).env("BLOBS", blobs.join(" "));
        command.env("PROGRAMS", setting.programs).env("PLACE", place).current_dir(place);
        command.envs(setting.registry.map(|registry| ("REGISTRY", registry)));
        Ok(command)
    }
}

/// The layers' blobs of an image that [`super::image`] made, lowest first.
fn blobs(image: &Path) -> Result<Vec<PathBuf>> {
    let json = |path: PathBuf| -> Result<serde_json::Value> {
        let bytes = std::fs::read(&path).with_context(|| format!("read {}", path.display()))?;
        serde_json::from_slice(&bytes).with_context(|| format!("read {}", path.display()))
    };
    let blob = |descriptor: &serde_json::Value| {
        image.join("blobs").join(descriptor["digest"].as_str().unwrap_or_default().replace(':', "/"))
    };
    let manifest = json(blob(&json(image.join("index.json"))?["manifests"][0]))?;
    Ok(manifest["layers"].as_array().context("the manifest has no layers")?.iter().map(blob).collect())
}
