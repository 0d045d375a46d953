//! What an image says about running it.
//!
//! Invariant: nothing in here refers to this machine. An environment entry without `=` would name a variable of the
//! host for some tools (CVE-2026-57231), so it is dropped; labels are not read at all.

use oci_spec::image::ImageConfiguration;

/// The parts of an image's config that a job uses. No string holds a NUL.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ImageConfig {
    /// `Entrypoint`.
    pub entrypoint: Vec<String>,
    /// `Cmd`.
    pub cmd: Vec<String>,
    /// `Env`, in order; names may repeat, the last counts.
    pub env: Vec<(String, String)>,
    /// Entries of `Env` that were dropped: without `=`, or without a name.
    pub dropped_env: usize,
    /// `WorkingDir`, unchecked.
    pub working_dir: Option<String>,
    /// `User`, for [`crate::user::resolve`].
    pub user: Option<String>,
    /// `StopSignal`, unchecked.
    pub stop_signal: Option<String>,
    /// `Volumes`, unchecked, in alphabetical order.
    pub volumes: Vec<String>,
    /// `ExposedPorts`, unchecked, in alphabetical order: to be shown, nothing is opened for them.
    pub exposed_ports: Vec<String>,
    /// `architecture` in Go's words (`amd64`): this machine's, or the image would have been refused.
    pub architecture: String,
}

impl ImageConfig {
    /// Takes over what is used; the error names a field that holds a NUL.
    pub(crate) fn from_oci(oci: &ImageConfiguration) -> Result<ImageConfig, &'static str> {
        let mut config = ImageConfig { architecture: oci.architecture().to_string(), ..ImageConfig::default() };
        let Some(run) = oci.config() else { return Ok(config) };
        let list = |list: &Option<Vec<String>>| list.clone().unwrap_or_default();
        // Keys of a map.
        let sorted = |keys: &Option<Vec<String>>| {
            let mut keys = list(keys);
            keys.sort();
            keys
        };
        // Docker writes absent strings as "".
        let text = |text: &Option<String>| text.clone().filter(|text| !text.is_empty());
        config.entrypoint = list(run.entrypoint());
        config.cmd = list(run.cmd());
        config.working_dir = text(run.working_dir());
        config.user = text(run.user());
        config.stop_signal = text(run.stop_signal());
        config.volumes = sorted(run.volumes());
        config.exposed_ports = sorted(run.exposed_ports());
        for entry in run.env().iter().flatten() {
            match entry.split_once('=') {
                Some((name, value)) if !name.is_empty() => config.env.push((name.to_owned(), value.to_owned())),
                _ => config.dropped_env += 1,
            }
        }
        let env = config.env.iter().flat_map(|(name, value)| [name, value]);
        for (field, mut texts) in [
            ("Entrypoint", Box::new(config.entrypoint.iter()) as Box<dyn Iterator<Item = &String>>),
            ("Cmd", Box::new(config.cmd.iter())),
            ("Env", Box::new(env)),
            ("WorkingDir", Box::new(config.working_dir.iter())),
            ("User", Box::new(config.user.iter())),
            ("StopSignal", Box::new(config.stop_signal.iter())),
            ("Volumes", Box::new(config.volumes.iter())),
            ("ExposedPorts", Box::new(config.exposed_ports.iter())),
        ] {
            if texts.any(|text| text.contains('\0')) {
                return Err(field);
            }
        }
        Ok(config)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(config: &str) -> Result<ImageConfig, &'static str> {
        let json = format!(
            r#"{{"architecture":"amd64","os":"linux","rootfs":{{"type":"layers","diff_ids":[]}},"config":{config}}}"#
        );
        ImageConfig::from_oci(&serde_json::from_str(&json).unwrap())
    }

    #[test]
    fn takes_over_what_is_used() {
        let config = parse(
            r#"{"Entrypoint":["/e"],"Cmd":["a","b"],"Env":["A=1","B=x=y","HOST","*","=v","C="],"WorkingDir":"/w",
                "User":"","StopSignal":"SIGINT","Labels":{"x":"y"},"Volumes":{"/v":{},"/a":{}},"ExposedPorts":{"80/tcp":{},"8/udp":{}},
                "OnBuild":null,"Hostname":""}"#,
        )
        .unwrap();
        assert_eq!(config.entrypoint, ["/e"]);
        assert_eq!(config.cmd, ["a", "b"]);
        let env: Vec<(&str, &str)> = config.env.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
        assert_eq!(env, [("A", "1"), ("B", "x=y"), ("C", "")]);
        assert_eq!(config.dropped_env, 3);
        assert_eq!(config.working_dir.as_deref(), Some("/w"));
        assert_eq!(config.user, None);
        assert_eq!(config.stop_signal.as_deref(), Some("SIGINT"));
        assert_eq!(config.volumes, ["/a", "/v"]);
        assert_eq!(config.exposed_ports, ["8/udp", "80/tcp"]);
        assert_eq!(config.architecture, "amd64");
        assert_eq!(parse(r#"{"Volumes":null,"ExposedPorts":null}"#).unwrap().volumes, [""; 0]);
        assert_eq!(parse("null").unwrap().cmd, [""; 0]);
        assert_eq!(parse(r#"{"Entrypoint":null,"Env":null}"#).unwrap().entrypoint, [""; 0]);
    }

    #[test]
    fn a_nul_is_refused() {
        assert_eq!(parse(r#"{"Env":["A=\u0000"]}"#), Err("Env"));
        assert_eq!(parse(r#"{"Cmd":["\u0000"]}"#), Err("Cmd"));
        assert_eq!(parse(r#"{"User":"a\u0000"}"#), Err("User"));
        assert_eq!(parse(r#"{"Volumes":{"/\u0000":{}}}"#), Err("Volumes"));
    }
}
