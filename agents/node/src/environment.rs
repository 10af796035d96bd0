//! The environment that a component is started with: a few variables of the node's own, what its specification says, its secrets,
//! and who it is. Secrets are read here, at each start, and go nowhere else.

use std::{collections::BTreeMap, ffi::OsString, fs, path::Path};

use razar_bus_schema::{ids::Incarnation, ids::Instance, v1};

use crate::{policy::hooks::HookRun, processes::Places};

/// Variables taken over from the node: where programs, homes and locales are. Nothing else is inherited, so that a start does not
/// depend on the shell that started the mesh.
const INHERITED: [&str; 10] = ["PATH", "HOME", "USER", "LOGNAME", "SHELL", "LANG", "LC_ALL", "TZ", "TMPDIR", "LD_LIBRARY_PATH"];

/// Largest secret file, in bytes: a key or a password, no more.
const SECRET_BYTES_MAX: u64 = 64 * 1024;

/// Who is started.
#[derive(Debug, Clone)]
pub(crate) struct Who<'a> {
    /// Name of the mesh.
    pub mesh: &'a str,
    /// Address of the broker.
    pub server: &'a str,
    /// Instance.
    pub instance: &'a Instance,
    /// Incarnation.
    pub incarnation: Incarnation,
    /// Its notification socket, if one of its probes asks for it.
    pub notify: Option<&'a Path>,
    /// `traceparent` of what started it; empty: none.
    pub traceparent: &'a str,
}

/// The whole environment of a component.
///
/// # Errors
/// In words: which secret could not be read, and why.
pub(crate) fn environment(
    spec: &v1::ComponentSpec,
    who: &Who<'_>,
    own: impl Fn(&str) -> Option<OsString>,
) -> Result<Vec<(OsString, OsString)>, String> {
    let mut env: Vec<(OsString, OsString)> = Vec::new();
    let mut set = |name: &str, value: OsString| {
        env.retain(|(n, _)| n != name);
        env.push((name.into(), value));
    };
    for name in INHERITED {
        if let Some(value) = own(name) {
            set(name, value);
        }
    }
    set("RAZAR_MESH", who.mesh.into());
    set("RAZAR_SERVER", who.server.into());
    set("RAZAR_COMPONENT", who.instance.component.clone().into());
    set("RAZAR_ORDINAL", who.instance.ordinal.to_string().into());
    set("RAZAR_INCARNATION", who.incarnation.to_string().into());
    if !who.traceparent.is_empty() {
        set("TRACEPARENT", who.traceparent.into());
    }
    for var in &spec.env {
        set(&var.name, var.value.clone().into());
    }
    for secret in &spec.secrets {
        set(&secret.name, read_secret(secret)?);
    }
    if let Some(path) = who.notify {
        set("NOTIFY_SOCKET", path.as_os_str().to_owned());
    }
    Ok(env)
}

fn read_secret(secret: &v1::SecretFile) -> Result<OsString, String> {
    use std::os::unix::ffi::OsStringExt as _;
    let said = |why: String| format!("secret {}: {}: {why}", secret.name, secret.file);
    let size = fs::metadata(&secret.file).map_err(|e| said(e.to_string()))?.len();
    if size > SECRET_BYTES_MAX {
        return Err(said(format!("{size} bytes are too large for a secret")));
    }
    let mut value = fs::read(&secret.file).map_err(|e| said(e.to_string()))?;
    if value.last() == Some(&b'\n') {
        value.pop();
    }
    if value.contains(&0) {
        return Err(said("a NUL byte cannot be in an environment".to_owned()));
    }
    Ok(OsString::from_vec(value))
}

/// The whole environment of a hook: a few variables of the node's own, who runs it, what it is run for, and what the stack file says.
pub(crate) fn of_hook(
    run: &HookRun,
    places: &Places,
    traceparent: &str,
    own: impl Fn(&str) -> Option<OsString>,
) -> Vec<(OsString, OsString)> {
    let mut env: BTreeMap<OsString, OsString> = BTreeMap::new();
    env.extend(INHERITED.iter().filter_map(|name| Some((OsString::from(name), own(name)?))));
    let node = [("RAZAR_MESH", &places.mesh), ("RAZAR_SERVER", &places.server), ("RAZAR_NODE", &places.node)];
    env.extend(node.map(|(name, value)| (OsString::from(name), OsString::from(value))));
    env.extend(run.hook.env.iter().map(|var| (OsString::from(&var.name), OsString::from(&var.value))));
    // What it is told of the incident is no matter of the stack file.
    env.extend(run.told.iter().map(|(name, value)| (OsString::from(name), OsString::from(value.replace('\0', " ")))));
    if !traceparent.is_empty() {
        env.insert("TRACEPARENT".into(), traceparent.into());
    }
    env.into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn who(instance: &Instance) -> Who<'_> {
        Who { mesh: "razar", server: "nats://x", instance, incarnation: Incarnation::new(1, 2), notify: None, traceparent: "" }
    }

    #[test]
    fn the_specification_wins_over_what_is_inherited_and_the_rest_stays_out() {
        let instance = Instance::new("api", 0);
        let env = [("PATH", "/mine"), ("PORT", "80")].map(|(n, v)| v1::EnvVar { name: n.into(), value: v.into() });
        let spec = v1::ComponentSpec { env: env.to_vec(), ..Default::default() };
        let own = |name: &str| matches!(name, "PATH" | "HOME" | "AWS_SECRET").then(|| OsString::from("theirs"));
        let env = environment(&spec, &who(&instance), own).unwrap();
        let get = |name: &str| env.iter().find(|(n, _)| n == name).map(|(_, v)| v.to_string_lossy().into_owned());
        assert_eq!((get("PATH").as_deref(), get("HOME").as_deref()), (Some("/mine"), Some("theirs")));
        assert_eq!((get("AWS_SECRET"), get("RAZAR_INCARNATION").as_deref()), (None, Some("1.2")));
    }

    #[test]
    fn a_missing_secret_is_named_and_never_shown() {
        let instance = Instance::new("api", 0);
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("pg");
        let secret = v1::SecretFile { name: "PGPASSWORD".into(), file: file.to_string_lossy().into_owned() };
        let spec = v1::ComponentSpec { secrets: vec![secret], ..Default::default() };
        let missing = environment(&spec, &who(&instance), |_| None).unwrap_err();
        assert!(missing.starts_with("secret PGPASSWORD: ") && missing.contains("No such file"), "{missing}");
        fs::write(&file, "hunter2\n").unwrap();
        let env = environment(&spec, &who(&instance), |_| None).unwrap();
        assert!(env.contains(&("PGPASSWORD".into(), "hunter2".into())));
    }
}
