//! Probes in their roles: something must tell a component ready, and nothing must kill it for its peers' sake.

use crate::{
    diagnostic::Code,
    file::{Component, Probe, Readiness},
    read::Reader,
};

pub(super) fn component(r: &mut Reader<'_>, name: &str, component: &Component) {
    let one_shot = component.one_shot == Some(true);
    let path = |role| ["components", name, role];
    let silent = |r: &Reader<'_>| ["startup", "readiness", "liveness"].iter().all(|role| !r.places.has(&["components", name, role]));
    let meant = |r: &Reader<'_>| ["startup", "readiness", "liveness"].iter().any(|role| r.meant(&["components", name], role));
    if silent(r) && !one_shot && !meant(r) {
        let at = r.places.key(&["components", name]);
        r.error(Code::NoProbe, at, "", Some("`readiness:`, or `readiness: none`".to_owned()));
    }
    if one_shot {
        for role in ["startup", "readiness", "liveness"]
            .into_iter()
            .filter(|role| *role != "readiness" || component.readiness != Some(Readiness::None))
        {
            if r.places.has(&path(role)) {
                let at = r.places.key(&path(role));
                r.warn(Code::ProbeUnused, at, format!("`{role}` of a one-shot is not asked: its success is its readiness"), None);
            }
        }
    }
    let readiness = match &component.readiness {
        Some(Readiness::Probe(probe)) => Some(probe.as_ref()),
        Some(Readiness::None) | None => None,
    };
    for (role, probe) in [("startup", component.startup.as_ref()), ("readiness", readiness), ("liveness", component.liveness.as_ref())] {
        if let Some(probe) = probe {
            port_is_listed(r, name, role, probe, component);
        }
    }
    if let Some(liveness) = &component.liveness {
        self::liveness(r, name, liveness, readiness.or(component.startup.as_ref()), !component.depends_on.is_empty());
    }
}

fn liveness(r: &mut Reader<'_>, name: &str, liveness: &Probe, readiness: Option<&Probe>, dependent: bool) {
    let at = r.places.key(&["components", name, "liveness"]);
    if liveness.log.is_some() {
        let hint = "`http`, `exec`, `grpc`, `notify` or `heartbeat`".to_owned();
        r.error(Code::ProbeRole, at, "a line in the log proves nothing later on: `log` cannot be liveness", Some(hint));
    }
    if liveness.tcp.is_some() {
        let message = "a stopped process still completes connects: `tcp` as liveness sees no hang";
        r.warn(Code::LivenessTcp, at, message, Some("`http`, `exec` or `grpc`".to_owned()));
    }
    let same = readiness.is_some_and(|readiness| Probe { timing: liveness.timing.clone(), ..readiness.clone() } == *liveness);
    if same && dependent && liveness.notify.is_none() && liveness.heartbeat.is_none() {
        let message = "liveness equals readiness: it would kill what waits for a slow peer";
        r.warn(Code::LivenessIsReadiness, at, message, Some("ask the process alone".to_owned()));
    }
}

/// A list of ports that lacks the one that is asked is probably a slip.
fn port_is_listed(r: &mut Reader<'_>, name: &str, role: &str, probe: &Probe, component: &Component) {
    let asked = [
        probe.http.as_ref().map(|p| ("http", p.port, &p.host)),
        probe.tcp.as_ref().map(|p| ("tcp", p.port, &p.host)),
        probe.grpc.as_ref().map(|p| ("grpc", p.port, &p.host)),
    ];
    for (kind, port, host) in asked.into_iter().flatten() {
        let here = host.as_deref().is_none_or(|h| matches!(h, "" | "localhost" | "127.0.0.1" | "::1" | "0.0.0.0"));
        if port > 0 && here && !component.ports.is_empty() && !component.ports.contains(&port) {
            let at = r.places.value(&["components", name, role, kind, "port"]);
            let message = format!("`{role}` asks port {port}, which is not among its `ports`");
            r.warn(Code::ProbePort, at, message, Some(format!("add {port} to `ports`")));
        }
    }
}
