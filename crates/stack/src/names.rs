//! Names: which are names at all, which the mesh keeps for itself, and which known name a mistyped one is nearest to.

/// Chakras that exist by themselves, with their health thresholds.
pub const CHAKRAS: [(&str, f64); 7] =
    [("root", 0.80), ("sacral", 0.85), ("solar", 0.90), ("heart", 0.88), ("throat", 0.92), ("third_eye", 0.93), ("crown", 0.95)];

/// Health threshold of a chakra that a stack adds without saying one.
pub const HEALTH_THRESHOLD_DEFAULT: f64 = 0.90;

/// Names that no component may have: the mesh itself, its stack, and the members of the `system` stack.
pub const RESERVED: [&str; 12] = [
    "broker",
    "gpu",
    "guard",
    "lazy-loader",
    "mesh",
    "node",
    "orchestrator",
    "provision",
    "quarantine",
    "recovery",
    "registry",
    "watchdog",
];

/// Names that no stack may have: the built-in one, and the mesh's root token.
pub const RESERVED_STACKS: [&str; 2] = ["mesh", "system"];

/// How alike two names must be, 0 to 1, to be suggested for each other: two slips in five letters. One slip is always forgiven.
const ALIKE_MIN: f64 = 0.6;

/// Whether `name` may name a stack, a component or a profile: `[a-z0-9-]`, at most 63, beginning with a letter or digit.
pub(crate) fn is_component_name(name: &str) -> bool {
    razar_bus_schema::ids::is_name(name) && !name.contains('_')
}

/// The name that `name` could be: lower-case, `-` for what is not allowed. Absent when nothing is left.
pub(crate) fn mended(name: &str) -> Option<String> {
    let plain = name.chars().map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' });
    let plain: String = plain.take(razar_bus_schema::ids::NAME_BYTES_MAX).collect();
    let mended = plain.trim_matches('-').to_owned();
    is_component_name(&mended).then_some(mended)
}

/// Whether the mesh keeps the name of a component for itself.
#[must_use]
pub fn is_reserved(name: &str) -> bool {
    RESERVED.contains(&name)
}

/// The known name that `name` probably means.
pub(crate) fn nearest<'k>(name: &str, known: impl IntoIterator<Item = &'k str>) -> Option<&'k str> {
    let bare = bare(name);
    let mut best: Option<(f64, &str)> = None;
    for candidate in known {
        let other = self::bare(candidate);
        let slips = strsim::damerau_levenshtein(&bare, &other);
        let length = bare.chars().count().max(other.chars().count()).max(1);
        let likeness = 1.0 - slips as f64 / length as f64;
        let alike = likeness >= ALIKE_MIN || (slips == 1 && length > 1);
        if alike && best.is_none_or(|(most, text)| likeness > most || (likeness >= most && candidate < text)) {
            best = Some((likeness, candidate));
        }
    }
    best.map(|(_, text)| text)
}

/// Known names that a mistyped one (of a component or an instance) may mean, the likeliest first, at most three. Slips are counted, a swap
/// of neighbours being one; a third of the known name's length is forgiven, and one slip in any case.
#[must_use]
pub fn likely(name: &str, known: impl IntoIterator<Item = String>) -> Vec<String> {
    let bare: String = name.split('.').next().unwrap_or(name).chars().take(64).collect();
    let mut scored: Vec<(usize, String)> = known.into_iter().map(|k| (strsim::osa_distance(&bare, &k), k)).collect();
    scored.retain(|(slips, k)| *slips <= k.len().max(3) / 3);
    scored.sort();
    scored.into_iter().take(3).map(|(_, k)| k).collect()
}

/// Letters and digits only, lower-case, at most 64 of them: `dependsOn`, `depends-on` and `depends_on` are one name.
fn bare(name: &str) -> String {
    name.chars().filter(|c| c.is_alphanumeric()).take(64).flat_map(char::to_lowercase).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn likely_ones_are_near_and_few() {
        let known = || ["api", "apis", "db", "memory-store", "web"].map(str::to_owned);
        assert_eq!(likely("memroy-store", known()), ["memory-store"], "a swap is one slip");
        assert_eq!(likely("pai.1", known()), ["api"], "of an instance, its component");
        assert_eq!(likely("apix", known()), ["api", "apis"]);
        assert!(likely("reranker", known()).is_empty() && likely("", known()).is_empty());
    }

    #[test]
    fn the_nearest_name_is_a_slip_away() {
        let known = ["command", "depends_on", "env", "readiness", "restart"];
        for (typed, meant) in [("dependson", "depends_on"), ("dependsOn", "depends_on"), ("readyness", "readiness"), ("comand", "command")]
        {
            assert_eq!(nearest(typed, known), Some(meant));
        }
        assert_eq!(nearest("image", known), None);
    }
}
