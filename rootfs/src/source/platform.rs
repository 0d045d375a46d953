//! Which of several images is for this machine.
//!
//! Invariant: an image for instructions this processor lacks is never chosen: it would die of SIGILL somewhere inside.

use std::sync::OnceLock;

use oci_spec::image::Descriptor;

use crate::printable::printable;
use crate::source::SourceError;

/// What a machine runs, in Go's words.
#[derive(Clone, Debug)]
pub(crate) struct Machine {
    architecture: &'static str,
    /// The variants it runs, best first; images that name none run too and are the last choice. Looked up when an image
    /// names one: in a virtual machine the processor takes 80 µs to say what it has.
    variants: OnceLock<Vec<&'static str>>,
}

impl Machine {
    /// The one this runs on.
    pub(crate) fn this() -> Machine {
        let architecture = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            "x86" => "386",
            "powerpc64" if cfg!(target_endian = "little") => "ppc64le",
            "loongarch64" => "loong64",
            other => other,
        };
        Machine { architecture, variants: OnceLock::new() }
    }

    fn variants(&self) -> &[&'static str] {
        self.variants.get_or_init(|| match self.architecture {
            "amd64" => x86_64_levels(),
            // ARMv9 has no images of its own; what it adds to v8 is optional.
            "arm64" => vec!["v8"],
            "arm" => arm_versions(rustix::system::uname().machine().to_bytes()),
            _ => Vec::new(),
        })
    }

    /// How good a choice an image is: the smaller the better, `None` when it does not run.
    fn rank(&self, os: &str, architecture: &str, variant: Option<&str>) -> Option<usize> {
        if os != "linux" || architecture != self.architecture {
            return None;
        }
        match variant.filter(|variant| !variant.is_empty()) {
            None => Some(usize::MAX),
            Some(variant) => self.variants().iter().position(|known| *known == variant),
        }
    }

    /// Refuses an image whose config names another machine.
    pub(crate) fn check(&self, os: &str, architecture: &str, variant: Option<&str>) -> Result<(), SourceError> {
        match self.rank(os, architecture, variant) {
            Some(_) => Ok(()),
            None => Err(self.refusal(&[(os.to_owned(), architecture.to_owned(), variant.map(str::to_owned))])),
        }
    }

    /// The best of several images; the first of equally good ones.
    pub(crate) fn choose<'d>(&self, among: &[&'d Descriptor]) -> Result<&'d Descriptor, SourceError> {
        // An index of one image, written by a tool that knows nothing of platforms: its config says what it is for.
        if let [only] = among
            && only.platform().is_none()
        {
            return Ok(only);
        }
        let mut best: Option<(usize, &Descriptor)> = None;
        let mut seen = Vec::new();
        for descriptor in among {
            let Some(platform) = descriptor.platform() else { continue };
            let (os, architecture) = (platform.os().to_string(), platform.architecture().to_string());
            let rank = self.rank(&os, &architecture, platform.variant().as_deref());
            if let Some(rank) = rank.filter(|rank| best.is_none_or(|(best, _)| *rank < best)) {
                best = Some((rank, descriptor));
            }
            seen.push((os, architecture, platform.variant().clone()));
        }
        best.map(|(_, descriptor)| descriptor).ok_or_else(|| self.refusal(&seen))
    }

    fn refusal(&self, seen: &[(String, String, Option<String>)]) -> SourceError {
        const SHOWN: usize = 20;
        // Which variants this machine runs is of interest only where all else fits.
        let close = seen.iter().any(|(os, architecture, _)| os == "linux" && architecture == self.architecture);
        let own = if close { self.variants().first().copied() } else { None };
        let names = seen.iter().take(SHOWN).map(|(os, arch, variant)| words(os, arch, variant.as_deref()));
        let names: Vec<String> = names.collect();
        let available = if names.is_empty() { "no platform that is named".into() } else { names.join(", ") };
        SourceError::Platform { wanted: words("linux", self.architecture, own), available }
    }
}

/// `linux/arm/v7`, safe to print.
fn words(os: &str, architecture: &str, variant: Option<&str>) -> String {
    let variant = variant.filter(|variant| !variant.is_empty()).map(|variant| format!("/{variant}"));
    printable(format!("{os}/{architecture}{}", variant.unwrap_or_default()).as_bytes())
}

/// The levels of the x86-64 psABI that this processor has.
fn x86_64_levels() -> Vec<&'static str> {
    let mut levels = vec!["v1"];
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::is_x86_feature_detected as has;
        let v2 =
            has!("cmpxchg16b") && has!("popcnt") && has!("sse3") && has!("ssse3") && has!("sse4.1") && has!("sse4.2");
        let v3 = v2
            && (has!("avx") && has!("avx2") && has!("bmi1") && has!("bmi2"))
            && (has!("f16c") && has!("fma") && has!("lzcnt") && has!("movbe"));
        let v4 =
            v3 && (has!("avx512f") && has!("avx512bw") && has!("avx512cd") && has!("avx512dq") && has!("avx512vl"));
        for (level, present) in [("v2", v2), ("v3", v3), ("v4", v4)] {
            if present {
                levels.insert(0, level);
            }
        }
    }
    levels
}

/// The versions that an `armv7l` runs, from its name.
fn arm_versions(machine: &[u8]) -> Vec<&'static str> {
    const ALL: [&str; 4] = ["v8", "v7", "v6", "v5"];
    let digit = machine.strip_prefix(b"armv").and_then(|rest| rest.first());
    let own = digit.and_then(|digit| ALL.iter().position(|version| version.as_bytes().get(1) == Some(digit)));
    ALL.iter().copied().skip(own.unwrap_or(ALL.len())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn descriptors(platforms: &[&str]) -> Vec<Descriptor> {
        let list = platforms.iter().map(|platform| {
            let mut words = platform.split('/');
            let mut json = serde_json::json!({
                "mediaType": "application/vnd.oci.image.manifest.v1+json", "size": 1,
                "digest": format!("sha256:{}", "a".repeat(64)),
                "annotations": {"name": platform},
            });
            if let (Some(os), Some(architecture)) = (words.next(), words.next()) {
                json["platform"] = serde_json::json!({"os": os, "architecture": architecture});
                if let Some(variant) = words.next() {
                    json["platform"]["variant"] = variant.into();
                }
            }
            serde_json::from_value(json).unwrap()
        });
        list.collect()
    }

    fn chosen(machine: &Machine, platforms: &[&str]) -> Option<String> {
        let all = descriptors(platforms);
        let chosen = machine.choose(&all.iter().collect::<Vec<_>>()).ok()?;
        Some(chosen.annotations().as_ref()?["name"].clone())
    }

    #[test]
    fn the_best_variant_that_runs_is_chosen() {
        let old = Machine { architecture: "amd64", variants: OnceLock::from(vec!["v2", "v1"]) };
        let new = Machine { architecture: "amd64", variants: OnceLock::from(vec!["v3", "v2", "v1"]) };
        let pi = Machine { architecture: "arm", variants: OnceLock::from(arm_versions(b"armv7l")) };
        let zero = Machine { architecture: "arm", variants: OnceLock::from(arm_versions(b"armv6l")) };
        let arm64 = Machine { architecture: "arm64", variants: OnceLock::from(vec!["v8"]) };
        let levels = ["linux/amd64", "linux/amd64/v3", "linux/amd64/v2", "linux/amd64/v4"];
        let arms = ["linux/arm64/v8", "linux/arm/v5", "linux/arm/v6", "linux/arm/v7", "linux/arm"];
        for (machine, platforms, want) in [
            (&old, &levels[..], Some("linux/amd64/v2")),
            (&new, &levels, Some("linux/amd64/v3")),
            (&old, &levels[..1], Some("linux/amd64")),
            (&old, &["linux/amd64/v3"], None),
            (&old, &["windows/amd64", "linux/386", "unknown/unknown"], None),
            (&old, &["linux/amd64/"], Some("linux/amd64/")),
            (&pi, &arms, Some("linux/arm/v7")),
            (&zero, &arms, Some("linux/arm/v6")),
            (&zero, &["linux/arm/v7"], None),
            (&zero, &["linux/arm"], Some("linux/arm")),
            (&arm64, &arms, Some("linux/arm64/v8")),
            (&arm64, &["linux/arm64/v9", "linux/arm64"], Some("linux/arm64")),
            // One image that names no platform is judged by its config, several are not guessed about.
            (&old, &["x"], Some("x")),
            (&old, &["x", "y"], None),
        ] {
            assert_eq!(chosen(machine, platforms).as_deref(), want, "{machine:?} {platforms:?}");
        }
        let all = descriptors(&["linux/arm/v7", "win\u{1b}dows/amd64"]);
        let error = old.choose(&all.iter().collect::<Vec<_>>()).unwrap_err().to_string();
        assert_eq!(error, "the image is not made for linux/amd64; it is made for linux/arm/v7, win\\u{1b}dows/amd64");
    }

    #[test]
    fn this_machine_runs_what_names_no_variant() {
        let this = Machine::this();
        assert!(this.check("linux", this.architecture, None).is_ok());
        assert!(this.check("linux", this.architecture, Some("v99")).is_err());
        assert!(this.check("windows", this.architecture, None).is_err());
        assert!(arm_versions(b"riscv64").is_empty());
    }
}
