//! What people type for components, found in the projection: `api` all its replicas, `api.1` one; the nearest name where there is none.

use razar_bus_schema::{ids::Instance, v1};

use crate::{
    exit::{Exit, Failure},
    render::text::{escape, nearest},
};

/// Instances meant by `typed`, in order of ordinal.
///
/// # Errors
/// Exit 64 with the nearest name when there is none.
pub(crate) fn instances<'o>(known: &'o [v1::ObservedComponent], typed: &str) -> Result<Vec<&'o v1::ObservedComponent>, Failure> {
    let wanted: Instance = typed.parse().map_err(|_| unknown(known, typed))?;
    let one = typed.contains('.');
    let meant = |c: &&v1::ObservedComponent| {
        c.instance.as_ref().is_some_and(|i| i.component == wanted.component && (!one || i.ordinal == wanted.ordinal))
    };
    let found: Vec<_> = known.iter().filter(meant).collect();
    if found.is_empty() { Err(unknown(known, typed)) } else { Ok(found) }
}

fn unknown(known: &[v1::ObservedComponent], typed: &str) -> Failure {
    let names: Vec<&str> = known.iter().filter_map(|c| c.instance.as_ref()).map(|i| i.component.as_str()).collect();
    let near = nearest(typed, names.iter().copied());
    let near = near.first().map(|n| format!("; nearest: {n}")).unwrap_or_default();
    Failure::new(Exit::Arguments, format!("no component {}{near}", escape(typed)))
}

/// The instance of an observed component.
pub(crate) fn instance_of(c: &v1::ObservedComponent) -> Option<Instance> {
    Instance::try_from(c.instance.as_ref()?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_found_or_the_nearest_is_named() {
        let of = |component: &str, ordinal| v1::ObservedComponent {
            instance: Some(v1::InstanceId { component: component.to_owned(), ordinal }),
            ..Default::default()
        };
        let known = [of("api", 0), of("api", 1), of("memory-store", 0)];
        assert_eq!(instances(&known, "api").unwrap().len(), 2);
        assert_eq!(instances(&known, "api.1").unwrap()[0].instance.as_ref().unwrap().ordinal, 1);
        let failure = instances(&known, "memroy-store").unwrap_err();
        assert_eq!((failure.exit, failure.text.as_str()), (Exit::Arguments, "no component memroy-store; nearest: memory-store"));
        assert_eq!(instances(&known, "a b").unwrap_err().text, "no component a b");
    }
}
