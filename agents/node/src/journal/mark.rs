//! The journal's mark: under which boot it was last open, and whether it was closed in order.
//! Another boot and no orderly close means that up to a block of records may never have reached the disk.

use std::fs::File;
use std::io::{self, Write as _};
use std::path::Path;

const FILE: &str = "mark";

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Mark {
    pub(super) boot_id: String,
    pub(super) clean: bool,
}

impl Mark {
    /// The mark in this directory; none when there is none that can be read.
    pub(super) fn read(dir: &Path) -> Option<Self> {
        let text = std::fs::read_to_string(dir.join(FILE)).ok()?;
        let (boot_id, state) = text.trim_end().split_once(' ')?;
        Some(Self { boot_id: boot_id.to_owned(), clean: state == "clean" })
    }

    /// Puts the mark in place, durably.
    pub(super) fn write(&self, dir: &Path) -> io::Result<()> {
        let text = format!("{} {}\n", self.boot_id, if self.clean { "clean" } else { "open" });
        replace_file(&dir.join(FILE), text.as_bytes())
    }
}

/// Replaces a file by another with this content: after a power cut it is the old one or the new one, whole.
pub(crate) fn replace_file(path: &Path, content: &[u8]) -> io::Result<()> {
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(".tmp");
    let written = (|| {
        let mut file = File::create(&temporary)?;
        file.write_all(content)?;
        file.sync_all()?;
        std::fs::rename(&temporary, path)
    })();
    if written.is_err() {
        let _ = std::fs::remove_file(&temporary);
    }
    written?;
    match path.parent() {
        Some(dir) => File::open(dir)?.sync_all(),
        None => Ok(()),
    }
}
