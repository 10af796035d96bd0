//! `validate` and `schema`: what `crates/stack` says of a file, and the schema of all files. Neither needs a mesh.

use crate::{
    args::Validate,
    console::{Console, Tone},
    exit::{Done, Exit},
    render::text::count,
    stack_file,
};

/// Prints everything that is wrong with the file; exit 64 if it is refused.
///
/// # Errors
/// When the file cannot be read.
pub(crate) fn validate(args: &Validate, console: &Console) -> Done {
    let (found, well) = match stack_file::read(&args.file)? {
        Ok(loaded) => {
            let document = &loaded.document;
            let profiles = document.profile_names().len();
            let profiles = if profiles > 0 { format!(", {}", count(profiles, "profile")) } else { String::new() };
            let components = count(document.components.len(), "component");
            (loaded.warnings.clone(), Some(format!("{}: {}, {components}{profiles}: ", args.file.display(), document.name)))
        }
        Err(found) => (found, None),
    };
    if console.json {
        console.lines(found.to_json_lines().lines())?;
    } else if !found.is_empty() {
        console.line(&found.to_string())?;
    }
    let Some(what) = well else { return Ok(Exit::Arguments) };
    if !console.json && !console.quiet {
        console.line(&format!("{what}{}", console.paint(Tone::Good, "well")))?;
    }
    Ok(Exit::Well)
}

/// Prints the JSON Schema of the stack file.
///
/// # Errors
/// When stdout cannot be written.
pub(crate) fn schema(console: &Console) -> Done {
    console.line(razar_stack::schema().trim_end())?;
    Ok(Exit::Well)
}
