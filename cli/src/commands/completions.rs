//! `completions`: the completion script of a shell, to stdout.

use crate::{
    args::{Completions, parser},
    console::Console,
    exit::{Done, Exit},
};

/// Writes the script.
///
/// # Errors
/// When stdout cannot be written.
pub(crate) fn run(args: &Completions, console: &Console) -> Done {
    let name = "razar";
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut parser(name), name, &mut script);
    console.line(String::from_utf8_lossy(&script).trim_end())?;
    Ok(Exit::Well)
}
