//! The process's table of descriptors. What is in it is whoever's made it; only its size is a matter here.

use std::io;
use std::os::fd::AsFd;

use rustix::process::{Resource, getrlimit};

/// Makes room for `count` descriptors, or as many as the limit of open files allows. Call it before there are threads: the kernel then makes the
/// table larger at once, while one that threads share grows only after an RCU grace period, of ten milliseconds and more on a busy machine, and
/// whoever opened the one descriptor too many waits for it. `any` is an open descriptor; it stays as it is.
///
/// # Errors
/// As `fcntl(F_DUPFD_CLOEXEC)`: no memory, or the last of them is in use. The table then grows when it must.
pub fn reserve_descriptors(any: impl AsFd, count: u32) -> io::Result<()> {
    let allowed = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    let highest = u64::from(count).min(allowed).saturating_sub(1);
    let highest = i32::try_from(highest).unwrap_or(i32::MAX);
    drop(rustix::io::fcntl_dupfd_cloexec(any, highest)?);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Size of this process's table, as the kernel tells it.
    fn table() -> u32 {
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let size = status.lines().find_map(|line| line.strip_prefix("FDSize:")).unwrap();
        size.trim().parse().unwrap()
    }

    #[test]
    fn the_table_has_room_and_holds_nothing_more() {
        let open = || std::fs::read_dir("/proc/self/fd").unwrap().count();
        let before = open();
        reserve_descriptors(io::stdin(), 512).unwrap();
        assert!(table() >= 512, "{}", table());
        assert_eq!(open(), before);
    }
}
