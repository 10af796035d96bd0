//! Profiles: what each runs with what it extends, and that nothing it needs is left out.

use std::collections::{BTreeMap, BTreeSet};

use crate::{
    diagnostic::Code,
    file::StackFile,
    names::nearest,
    read::{Reader, printable},
};

/// The profile, what it extends, what that extends, …; ends where a name is unknown or comes again.
pub(crate) fn lineage<'f>(file: &'f StackFile, profile: &str) -> Vec<&'f str> {
    let mut line: Vec<&str> = Vec::new();
    let mut next = Some(profile);
    while let Some((name, spec)) = next.and_then(|n| file.profiles.get_key_value(n)).filter(|(n, _)| !line.contains(&n.as_str())) {
        line.push(name);
        next = spec.extends.as_deref();
    }
    line
}

/// The components of each profile; what is wrong with them is told.
pub(super) fn sets(r: &mut Reader<'_>, file: &StackFile) -> BTreeMap<String, BTreeSet<String>> {
    let mut sets = BTreeMap::new();
    for name in file.profiles.keys() {
        r.subject = Some(format!("profile {}", printable(name)));
        extends(r, file, name);
        names(r, file, name);
        let line = lineage(file, name);
        let all = line.iter().filter_map(|n| file.profiles.get(*n)).flat_map(|p| p.include.iter());
        let set: BTreeSet<String> = all.filter(|c| file.components.contains_key(*c)).cloned().collect();
        needs(r, file, name, &set);
        autoload(r, file, name, &set);
        r.subject = None;
        sets.insert(name.clone(), set);
    }
    sets
}

fn extends(r: &mut Reader<'_>, file: &StackFile, name: &str) {
    let Some(parent) = file.profiles.get(name).and_then(|p| p.extends.as_deref()) else { return };
    let at = r.places.value(&["profiles", name, "extends"]);
    if !file.profiles.contains_key(parent) {
        let hint = nearest(parent, file.profiles.keys().map(String::as_str).filter(|p| *p != name)).map(|n| format!("`{n}`"));
        r.show(Code::UnknownProfile, at, format!("extends `{}`, which is no profile", printable(parent)), hint);
        return;
    }
    let line = lineage(file, name);
    let end = line.last().and_then(|last| file.profiles.get(*last)).and_then(|p| p.extends.as_deref());
    // Told once, at the first name of the circle.
    if end == Some(name) && line.iter().min() == Some(&name) {
        let mut circle = line;
        circle.push(name);
        r.error(Code::ProfileCycle, at, format!("extends itself: {}", circle.join(" > ")), Some("drop one `extends`".to_owned()));
    }
}

fn names(r: &mut Reader<'_>, file: &StackFile, name: &str) {
    let Some(profile) = file.profiles.get(name) else { return };
    for (key, list) in [("include", &profile.include), ("autoload", &profile.autoload)] {
        for (index, component) in list.iter().enumerate().filter(|(_, c)| !file.components.contains_key(*c)) {
            let at = r.places.value(&["profiles", name, key, &index.to_string()]);
            let hint = nearest(component, file.components.keys().map(String::as_str)).map(|n| format!("`{n}`"));
            r.show(Code::UnknownComponent, at, format!("`{key}`: `{}` is no component", printable(component)), hint);
        }
    }
    if profile.include.is_empty() && profile.extends.is_none() {
        let at = r.places.key(&["profiles", name]);
        r.error(Code::Empty, at, "runs nothing", Some("`include:`, or `extends:`".to_owned()));
    }
}

/// A required dependency of what the profile runs must be in it. Told at the profile that includes the component.
fn needs(r: &mut Reader<'_>, file: &StackFile, name: &str, set: &BTreeSet<String>) {
    let Some(profile) = file.profiles.get(name) else { return };
    for (index, component) in profile.include.iter().enumerate() {
        let on = file.components.get(component).map(|c| &c.depends_on);
        let required = on.into_iter().flatten().filter(|(_, how)| how.required != Some(false)).map(|(on, _)| on);
        let missing: Vec<&str> =
            required.filter(|on| file.components.contains_key(*on) && !set.contains(*on)).map(String::as_str).collect();
        if !missing.is_empty() {
            let at = r.places.value(&["profiles", name, "include", &index.to_string()]);
            let message = format!("{component} needs {}, which the profile leaves out", missing.join(" and "));
            r.error(Code::OutsideProfile, at, message, Some(format!("include: [{}, {component}]", missing.join(", "))));
        }
    }
}

fn autoload(r: &mut Reader<'_>, file: &StackFile, name: &str, set: &BTreeSet<String>) {
    let Some(profile) = file.profiles.get(name) else { return };
    for (index, component) in profile.autoload.iter().enumerate() {
        if file.components.contains_key(component) && !set.contains(component) {
            let at = r.places.value(&["profiles", name, "autoload", &index.to_string()]);
            r.error(
                Code::OutsideProfile,
                at,
                format!("`autoload`: the profile does not run {component}"),
                Some(format!("include: [{component}]")),
            );
        }
    }
}
