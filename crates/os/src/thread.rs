//! What the kernel gave a thread.

use std::io;
use std::time::Duration;

use crate::identity::Pid;
use crate::procfs::Reader;

/// Time that a thread was given since it began.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ThreadTimes {
    /// On a processor.
    pub ran: Duration,
    /// Ready, and waiting for a processor.
    pub waited: Duration,
}

impl ThreadTimes {
    /// Of the calling thread. `None` where the kernel was built without scheduler statistics.
    ///
    /// # Errors
    /// Out of descriptors.
    pub fn own() -> io::Result<Option<Self>> {
        let times = Reader::new().task_schedstat(Pid::this(), Pid::this_thread())?;
        Ok(times.map(|(run_ns, delay_ns)| Self { ran: Duration::from_nanos(run_ns), waited: Duration::from_nanos(delay_ns) }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_works_is_said_to_have_run() {
        let own = || ThreadTimes::own().expect("read").expect("a kernel with scheduler statistics");
        let (before, limit) = (own(), std::time::Instant::now() + Duration::from_secs(20));
        while own().ran < before.ran + Duration::from_millis(20) {
            assert!(std::time::Instant::now() < limit, "{:?} after {before:?}", own());
        }
        assert!(own().waited >= before.waited);
    }
}
