//! cgroup2 where the machine has one that we may write to: a directory per instance, to start in, to kill whole, to ask for an OOM kill.
//! Always optional: no limits are set here, no controllers turned on, and v1 hierarchies are not used at all.

use std::fs;
use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{Access, AtFlags, CWD, Mode, OFlags};

use crate::identity::Pid;

/// The directory that holds all of ours, below the cgroup of whoever detects.
const OURS: &str = "razar";
/// Nested cgroups that a component made for itself are followed this deep.
const DEPTH_MAX: usize = 8;
/// A cgroup file that we read is never longer than this, except a list of pids.
const FILE_BYTES_MAX: u64 = 1024 * 1024;

/// A cgroup2 hierarchy that we may make cgroups in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cgroups {
    /// Where our cgroup is in the file system.
    own: PathBuf,
}

impl Cgroups {
    /// Finds one, trying it out: makes a cgroup below the caller's own, sees that it can be killed whole, removes it. `None`: no cgroup2 mounted,
    /// not writable, a kernel before 5.14, or nothing below it may be entered.
    #[must_use]
    pub fn detect() -> Option<Self> {
        let mounts = fs::read_to_string("/proc/self/mountinfo").ok()?;
        let own = fs::read_to_string("/proc/self/cgroup").ok()?;
        let own = own.lines().find_map(|line| line.strip_prefix("0::"))?;
        mounts.lines().filter_map(|line| own_directory(line, own)).find_map(|own| Self { own }.tried())
    }

    fn tried(self) -> Option<Self> {
        // To be born in a cgroup below, one must be allowed to write here as well.
        rustix::fs::accessat(CWD, self.own.join("cgroup.procs"), Access::WRITE_OK, AtFlags::EACCESS).ok()?;
        let probe = self.own.join(OURS).join(format!("probe-{}", Pid::this()));
        fs::create_dir_all(&probe).ok()?;
        let killable = probe.join("cgroup.kill").exists();
        // Left behind it would do no harm.
        let _ = fs::remove_dir(&probe);
        killable.then_some(self)
    }

    /// Where ours lie: `<own cgroup>/razar`.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        self.own.join(OURS)
    }

    /// The instance's cgroup, made if it is missing. One that is there is taken as it is, with whoever is in it.
    ///
    /// # Errors
    /// `InvalidInput` for a name that is no file name; else as `mkdir` and `open`.
    pub fn create(&self, mesh: &str, node: &str, instance: &str) -> io::Result<Cgroup> {
        let path = self.path_of(mesh, node, instance)?;
        // Once more for each level that `remove` may take away meanwhile.
        let mut tries = 3;
        loop {
            match fs::create_dir_all(&path).and_then(|()| Cgroup::open(&path)) {
                Err(error) if error.kind() == io::ErrorKind::NotFound && tries > 0 => tries -= 1,
                made => return made,
            }
        }
    }

    /// The instance's cgroup if there is one.
    ///
    /// # Errors
    /// As [`Self::create`].
    pub fn find(&self, mesh: &str, node: &str, instance: &str) -> io::Result<Option<Cgroup>> {
        match Cgroup::open(&self.path_of(mesh, node, instance)?) {
            Ok(cgroup) => Ok(Some(cgroup)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Removes the instance's cgroup, with the empty ones above it up to `razar`. True when it is gone, false when somebody is still in it.
    ///
    /// # Errors
    /// As `rmdir`.
    pub fn remove(&self, mesh: &str, node: &str, instance: &str) -> io::Result<bool> {
        let path = self.path_of(mesh, node, instance)?;
        if !remove_tree(&path, 0)? {
            return Ok(false);
        }
        // Others may still use these.
        let _ = path.ancestors().skip(1).take(3).try_for_each(fs::remove_dir);
        Ok(true)
    }

    fn path_of(&self, mesh: &str, node: &str, instance: &str) -> io::Result<PathBuf> {
        let mut path = self.path();
        for name in [mesh, node, instance] {
            if name.is_empty() || name.starts_with('.') || name.contains(['/', '\0', '\n']) {
                let what = format!("{name:?} cannot name a cgroup");
                return Err(io::Error::new(io::ErrorKind::InvalidInput, what));
            }
            path.push(name);
        }
        Ok(path)
    }
}

/// The directory of cgroup `own` under this mount, if the line is of a cgroup2 mount that shows it.
fn own_directory(mountinfo_line: &str, own: &str) -> Option<PathBuf> {
    let (mount, file_system) = mountinfo_line.split_once(" - ")?;
    if file_system.split(' ').next() != Some("cgroup2") {
        return None;
    }
    let mut fields = mount.split(' ').skip(3);
    let (root, point) = (fields.next()?, fields.next()?);
    // In a container the mount may show only the part below the container's own cgroup.
    let below = Path::new(own).strip_prefix(root).ok()?;
    Some(Path::new(&unescape(point)).join(below))
}

/// mountinfo writes space, tab, newline and backslash as three octal digits.
fn unescape(text: &str) -> String {
    text.replace("\\040", " ").replace("\\011", "\t").replace("\\012", "\n").replace("\\134", "\\")
}

/// True when it is gone; false when somebody is in it.
fn remove_tree(path: &Path, depth: usize) -> io::Result<bool> {
    if depth < DEPTH_MAX {
        for child in subdirectories(path)? {
            if !remove_tree(&child, depth + 1)? {
                return Ok(false);
            }
        }
    }
    match fs::remove_dir(path) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::ResourceBusy => Ok(false),
        Err(error) => Err(error),
    }
}

fn subdirectories(path: &Path) -> io::Result<Vec<PathBuf>> {
    let entries = match fs::read_dir(path) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    Ok(entries.flatten().filter(|e| e.file_type().is_ok_and(|t| t.is_dir())).map(|e| e.path()).collect())
}

/// One cgroup, held open.
#[derive(Debug)]
pub struct Cgroup {
    dir: OwnedFd,
    path: PathBuf,
}

impl Cgroup {
    /// Opens the cgroup at this directory.
    ///
    /// # Errors
    /// As `open`.
    pub fn open(path: &Path) -> io::Result<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(Self { dir: rustix::fs::open(path, flags, Mode::empty())?, path: path.to_owned() })
    }

    /// Its directory.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Kills everybody in it and below, at once and race-free, frozen ones too. Returns before they are dead: see [`Self::is_populated`].
    ///
    /// # Errors
    /// `NotFound` on kernels before 5.14, or when the cgroup was removed.
    pub fn kill(&self) -> io::Result<()> {
        self.write("cgroup.kill", "1")
    }

    /// Whether anybody alive is in it or below (zombies do not count).
    ///
    /// # Errors
    /// It was removed.
    pub fn is_populated(&self) -> io::Result<bool> {
        Ok(self.event("cgroup.events", "populated")? == Some(1))
    }

    /// Whether everybody in it stands frozen.
    ///
    /// # Errors
    /// It was removed.
    pub fn is_frozen(&self) -> io::Result<bool> {
        Ok(self.event("cgroup.events", "frozen")? == Some(1))
    }

    /// Freezes or thaws everybody in it. Takes effect soon after: see [`Self::is_frozen`].
    ///
    /// # Errors
    /// `NotFound` on kernels before 5.2, or when the cgroup was removed.
    pub fn set_frozen(&self, frozen: bool) -> io::Result<()> {
        self.write("cgroup.freeze", if frozen { "1" } else { "0" })
    }

    /// Whether the kernel has killed anybody in it for want of memory since it was made; `None` where no memory controller tells.
    #[must_use]
    pub fn oom_killed(&self) -> Option<bool> {
        self.event("memory.events", "oom_kill").ok().flatten().map(|count| count > 0)
    }

    /// Processes in it and in the cgroups below it, zombies included.
    ///
    /// # Errors
    /// It was removed.
    pub fn pids(&self) -> io::Result<Vec<Pid>> {
        let mut pids = parse_pids(&self.read("cgroup.procs")?);
        below(&self.path, 0, &mut pids);
        Ok(pids)
    }

    fn event(&self, file: &str, key: &str) -> io::Result<Option<u64>> {
        let text = self.read(file)?;
        Ok(text.lines().filter_map(|line| line.split_once(' ')).find(|(k, _)| *k == key).and_then(|(_, v)| v.trim().parse().ok()))
    }

    fn read(&self, name: &str) -> io::Result<String> {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        let mut text = String::new();
        fs::File::from(rustix::fs::openat(&self.dir, name, flags, Mode::empty())?).take(FILE_BYTES_MAX).read_to_string(&mut text)?;
        Ok(text)
    }

    fn write(&self, name: &str, value: &str) -> io::Result<()> {
        let flags = OFlags::WRONLY | OFlags::CLOEXEC;
        fs::File::from(rustix::fs::openat(&self.dir, name, flags, Mode::empty())?).write_all(value.as_bytes())
    }
}

impl AsFd for Cgroup {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.dir.as_fd()
    }
}

fn below(path: &Path, depth: usize, pids: &mut Vec<Pid>) {
    if depth >= DEPTH_MAX {
        return;
    }
    for child in subdirectories(path).unwrap_or_default() {
        // One that is removed meanwhile had nobody in it.
        if let Ok(text) = fs::read_to_string(child.join("cgroup.procs")) {
            pids.extend(parse_pids(&text));
        }
        below(&child, depth + 1, pids);
    }
}

fn parse_pids(text: &str) -> Vec<Pid> {
    text.lines().filter_map(|line| line.trim().parse().ok().and_then(Pid::new)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_own_directory_is_found_under_host_and_container_mounts() {
        let host = "42 31 0:38 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw";
        assert_eq!(own_directory(host, "/user.slice/x"), Some(PathBuf::from("/sys/fs/cgroup/user.slice/x")));
        let container = "42 31 0:38 /docker/7 /sys/fs/cgroup rw shared:1 - cgroup2 cgroup2 rw";
        assert_eq!(own_directory(container, "/docker/7/a"), Some(PathBuf::from("/sys/fs/cgroup/a")));
        assert_eq!(own_directory(container, "/elsewhere"), None);
        let v1 = "42 31 0:38 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu";
        assert_eq!(own_directory(v1, "/"), None);
    }

    #[test]
    fn names_that_lead_elsewhere_are_refused() {
        let cgroups = Cgroups { own: PathBuf::from("/nowhere") };
        for bad in ["", "..", ".x", "a/b", "a\n"] {
            assert!(cgroups.path_of("mesh", "node", bad).is_err(), "{bad:?}");
        }
        assert_eq!(cgroups.path_of("m", "n", "api.0").unwrap(), PathBuf::from("/nowhere/razar/m/n/api.0"));
    }
}
