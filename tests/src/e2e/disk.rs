//! A disk of a test's own, which it may fill: a tmpfs whose size is changed while it is in use, so that nothing has to be written to fill
//! gigabytes. Mounting asks for root.

use std::{fs, io::Write as _, path::Path, process::Command};

use anyhow::{Context, Result, ensure};

/// Size while there is room: the broker reserves its streams.
const ROOM: &str = "4g";
/// Size at which the rest is filled by a file: small, since a tmpfs is memory.
const TIGHT: &str = "24m";

/// A disk; it is gone when it is dropped, whatever happened to the test.
#[derive(Debug)]
pub struct Disk {
    dir: tempfile::TempDir,
}

impl Disk {
    /// A disk with room.
    ///
    /// # Errors
    /// When it cannot be mounted.
    pub fn new() -> Result<Self> {
        let dir = tempfile::Builder::new().prefix("razar-disk-").tempdir()?;
        let disk = Self { dir };
        run("mount", &["-t", "tmpfs", "-o", &format!("size={ROOM}"), "tmpfs", &disk.path()])?;
        Ok(disk)
    }

    fn path(&self) -> String {
        self.dir.path().to_string_lossy().into_owned()
    }

    /// Puts a directory at `place` that lies on this disk.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn hold(&self, place: &Path) -> Result<()> {
        let held = self.dir.path().join("held");
        fs::create_dir_all(&held)?;
        Ok(std::os::unix::fs::symlink(held, place)?)
    }

    /// From now on not a byte more can be written.
    ///
    /// # Errors
    /// When it cannot be made smaller.
    pub fn fill(&self) -> Result<()> {
        run("mount", &["-o", &format!("remount,size={TIGHT}"), &self.path()])?;
        let mut filler = fs::File::create(self.dir.path().join("filler"))?;
        for size in [1 << 16, 1 << 12, 1] {
            let chunk = vec![b'x'; size];
            while filler.write_all(&chunk).is_ok() {}
        }
        Ok(())
    }

    /// There is room again.
    ///
    /// # Errors
    /// When it cannot be made larger.
    pub fn free(&self) -> Result<()> {
        fs::remove_file(self.dir.path().join("filler"))?;
        run("mount", &["-o", &format!("remount,size={ROOM}"), &self.path()])
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // Lazily: who still writes there ends with its own test.
        drop(run("umount", &["-l", &self.path()]));
    }
}

fn run(program: &str, args: &[&str]) -> Result<()> {
    let out = Command::new(program).args(args).output().with_context(|| format!("running {program}"))?;
    let said = String::from_utf8_lossy(&out.stderr);
    ensure!(out.status.success(), "{program} {}: {said} (the test of a full disk mounts one: run it as root)", args.join(" "));
    Ok(())
}
