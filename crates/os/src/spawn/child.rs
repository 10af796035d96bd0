//! The clone, and what the child does before `execve`: system calls on prepared memory only, since it shares the parent's memory and
//! must not allocate, lock or panic. The parent's thread stands still until the child has executed or ended.

use std::cell::UnsafeCell;
use std::ffi::{CStr, CString, c_char, c_int, c_ulong, c_void};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{FromRawFd, OwnedFd};
use std::ptr;

use super::SpawnStep;
use crate::identity::Pid;

/// Stack of the child. Its frames are small; debug builds need a few KiB.
const STACK_BYTES: usize = 64 * 1024;
/// Below the stack, so that an overrun faults instead of writing over the parent's memory. A multiple of every page size in use.
const GUARD_BYTES: usize = 64 * 1024;
/// Highest signal number of the kernel.
const SIGNAL_MAX: c_int = 64;
/// The kernel's signal set is 64 bits on every architecture but MIPS.
const KERNEL_SIGSET_BYTES: usize = 8;
/// Descriptors looked at where `close_range` cannot mark them (kernels before 5.11).
const FD_SCAN_MAX: c_int = 65_536;
/// Longer than any `stat` line.
const STAT_BYTES: usize = 1024;

/// What the child needs, all of it owned by the caller.
pub(super) struct Plan<'a> {
    pub(super) path: &'a CStr,
    pub(super) argv: Vec<*const c_char>,
    pub(super) envp: Vec<*const c_char>,
    pub(super) pid_line: Option<PidLine>,
    pub(super) cwd: &'a CStr,
    pub(super) fds: &'a [(i32, i32)],
    pub(super) nofile: Option<libc::rlimit>,
    pub(super) cgroup: Option<c_int>,
    /// Not 0, which would mean the default.
    pub(super) timer_slack_nanos: Option<c_ulong>,
    /// Enter the cgroup after birth, as where clone3 cannot be had: slower by milliseconds.
    pub(super) walks_into_cgroup: bool,
}

/// A line of the environment that ends in room for ten digits and a NUL, which the child fills with its pid.
pub(super) struct PidLine {
    line: Vec<u8>,
    digits_at: usize,
}

impl PidLine {
    pub(super) fn new(name: &str) -> Self {
        Self { line: format!("{name}={:010}\0", 0).into_bytes(), digits_at: name.len() + 1 }
    }

    /// For the list of the environment; stays valid when `self` moves.
    pub(super) fn pointer(&mut self) -> *const c_char {
        self.line.as_mut_ptr().cast()
    }

    fn digits(&mut self) -> *mut u8 {
        // SAFETY: `new` made the line longer than that.
        unsafe { self.line.as_mut_ptr().add(self.digits_at) }
    }
}

/// The list that `execve` wants: pointers, then null.
pub(super) fn pointers(strings: &[CString], last: Option<*const c_char>) -> Vec<*const c_char> {
    strings.iter().map(|s| s.as_ptr()).chain(last).chain([ptr::null()]).collect()
}

/// A process was made; `failure` says the step and errno if it never got to its program.
pub(super) struct Started {
    pub(super) pid: Pid,
    pub(super) pidfd: OwnedFd,
    pub(super) failure: Option<(SpawnStep, i32)>,
    /// Its `/proc/self/stat`, as it read it itself; empty if it could not.
    pub(super) stat: Vec<u8>,
}

/// Shared with the child, which runs while the parent's thread stands still.
struct Shared<'a> {
    plan: &'a Plan<'a>,
    /// Set when the child has to enter its cgroup by itself.
    enter_cgroup: Option<c_int>,
    /// Numbers of the lifted descriptors, one for each of `plan.fds`.
    lifted: UnsafeCell<Vec<c_int>>,
    /// Where the pid's digits go.
    pid_digits: Option<*mut u8>,
    failure: UnsafeCell<Option<(SpawnStep, c_int)>>,
    /// Filled by the child up to `stat_len`.
    stat: UnsafeCell<Vec<u8>>,
    stat_len: UnsafeCell<usize>,
}

/// Makes the child and waits until it has executed or failed.
pub(super) fn clone_and_exec(plan: &mut Plan<'_>) -> io::Result<Started> {
    let stack = Stack::new()?;
    let pid_digits = plan.pid_line.as_mut().map(PidLine::digits);
    let plan = &*plan;
    let mut shared = Shared {
        plan,
        enter_cgroup: None,
        lifted: UnsafeCell::new(vec![-1; plan.fds.len()]),
        pid_digits,
        failure: UnsafeCell::new(None),
        stat: UnsafeCell::new(vec![0; STAT_BYTES]),
        stat_len: UnsafeCell::new(0),
    };
    // A handler of ours must not run in the child, which shares our memory.
    let blocked = BlockedSignals::new()?;
    let born_inside = if plan.walks_into_cgroup { None } else { plan.cgroup };
    let cloned = match born_inside.map(|cgroup| clone_into_cgroup(&stack, &shared, cgroup)) {
        Some(Ok(made)) => Ok(made),
        Some(Err(error)) if !knows_no_clone3(&error) => Err(error),
        _ => {
            shared.enter_cgroup = plan.cgroup;
            clone_plain(&stack, &shared)
        }
    };
    drop(blocked);
    let (pid, pidfd) = cloned?;
    let pid = Pid::new(pid).ok_or_else(|| io::Error::from(io::ErrorKind::InvalidData))?;
    // SAFETY: the kernel has just made this descriptor for us, and nothing else knows it.
    let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
    let mut stat = shared.stat.into_inner();
    stat.truncate(shared.stat_len.into_inner());
    Ok(Started { pid, pidfd, failure: shared.failure.into_inner(), stat })
}

/// Kernels before 5.7, other architectures, and seccomp filters that do not let it through.
fn knows_no_clone3(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOSYS | libc::EPERM | libc::E2BIG | libc::EINVAL))
}

fn clone_plain(stack: &Stack, shared: &Shared<'_>) -> io::Result<(c_int, c_int)> {
    let mut pidfd: c_int = -1;
    let flags = libc::CLONE_VM | libc::CLONE_VFORK | libc::CLONE_PIDFD | libc::SIGCHLD;
    let argument = ptr::from_ref(shared).cast_mut().cast::<c_void>();
    // SAFETY: the stack is ours and outlives the child's use of it, since CLONE_VFORK holds us until the child has executed or ended;
    // `run` obeys the rules of a child that shares memory; `pidfd` is where CLONE_PIDFD writes.
    let pid = unsafe { libc::clone(run_by_clone, stack.top(), flags, argument, &raw mut pidfd) };
    if pid < 0 { Err(io::Error::last_os_error()) } else { Ok((pid, pidfd)) }
}

extern "C" fn run_by_clone(shared: *mut c_void) -> c_int {
    // SAFETY: called with what `clone_plain` handed over.
    unsafe { run(shared.cast::<Shared<'_>>()) }
}

/// `struct clone_args` up to the field `cgroup` (kernel 5.7).
#[cfg(target_arch = "x86_64")]
#[repr(C, align(8))]
#[derive(Default)]
struct CloneArgs {
    flags: u64,
    pidfd: u64,
    child_tid: u64,
    parent_tid: u64,
    exit_signal: u64,
    stack: u64,
    stack_size: u64,
    tls: u64,
    set_tid: u64,
    set_tid_size: u64,
    cgroup: u64,
}

#[cfg(target_arch = "x86_64")]
fn clone_into_cgroup(stack: &Stack, shared: &Shared<'_>, cgroup: c_int) -> io::Result<(c_int, c_int)> {
    /// From the kernel's `sched.h`; the C library's constant does not fit its own type.
    const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;
    let mut pidfd: c_int = -1;
    let args = CloneArgs {
        flags: (libc::CLONE_VM | libc::CLONE_VFORK | libc::CLONE_PIDFD) as u64 | CLONE_INTO_CGROUP,
        pidfd: (&raw mut pidfd).expose_provenance() as u64,
        exit_signal: libc::SIGCHLD as u64,
        stack: stack.bottom().expose_provenance() as u64,
        stack_size: STACK_BYTES as u64,
        cgroup: u64::try_from(cgroup).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?,
        ..CloneArgs::default()
    };
    let result: i64;
    // SAFETY: in the parent this is one system call, which writes `pidfd` and returns once the child has executed or ended. The child
    // starts on its own empty stack, whose top is aligned for a call, with our registers, and calls `run`, which never returns. The
    // registers that carry its argument and address are ones that a system call preserves.
    unsafe {
        std::arch::asm!(
            "syscall",
            "test rax, rax",
            "jnz 2f",
            "xor ebp, ebp",
            "mov rdi, r12",
            "call r13",
            "ud2",
            "2:",
            inlateout("rax") libc::SYS_clone3 => result,
            in("rdi") &raw const args,
            in("rsi") size_of::<CloneArgs>(),
            in("r12") ptr::from_ref(shared),
            in("r13") run as unsafe extern "C" fn(*mut Shared<'static>) -> !,
            lateout("rcx") _,
            lateout("r11") _,
        );
    }
    match i32::try_from(result) {
        Ok(pid) if pid > 0 => Ok((pid, pidfd)),
        Ok(error) => Err(io::Error::from_raw_os_error(error.saturating_neg())),
        Err(_) => Err(io::Error::from(io::ErrorKind::InvalidData)),
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn clone_into_cgroup(_stack: &Stack, _shared: &Shared<'_>, _cgroup: c_int) -> io::Result<(c_int, c_int)> {
    Err(io::Error::from_raw_os_error(libc::ENOSYS))
}

/// The child. Runs on its own stack in the parent's memory.
///
/// # Safety
/// `shared` points to a live `Shared`, and nothing else touches it until this process has executed or ended.
unsafe extern "C" fn run(shared: *mut Shared<'static>) -> ! {
    // SAFETY: by the contract above.
    let shared = unsafe { &*shared };
    // SAFETY: as above, and we are a fresh child.
    let (step, errno) = match unsafe { prepare_and_exec(shared) } {
        Err(failed) => failed,
        Ok(never) => match never {},
    };
    // SAFETY: the parent reads this only after we have ended; `_exit` runs no handlers of the parent's.
    unsafe {
        *shared.failure.get() = Some((step, errno));
        libc::_exit(127)
    }
}

type Failed = (SpawnStep, c_int);
enum Never {}

/// # Safety
/// Only in a fresh child whose parent stands still.
unsafe fn prepare_and_exec(shared: &Shared<'_>) -> Result<Never, Failed> {
    let plan = shared.plan;
    // SAFETY: system calls on prepared memory; nothing allocates, locks or unwinds.
    unsafe {
        reset_signal_handlers();
        if let Some(cgroup) = shared.enter_cgroup {
            enter_cgroup(cgroup).map_err(|errno| (SpawnStep::Cgroup, errno))?;
        }
        check(libc::setsid()).map_err(|errno| (SpawnStep::Session, errno))?;
        place_descriptors(shared).map_err(|errno| (SpawnStep::Descriptors, errno))?;
        check(libc::chdir(plan.cwd.as_ptr())).map_err(|errno| (SpawnStep::WorkingDirectory, errno))?;
        if let Some(limit) = &plan.nofile {
            check(libc::setrlimit(libc::RLIMIT_NOFILE, limit)).map_err(|errno| (SpawnStep::FileLimit, errno))?;
        }
        if let Some(nanos) = plan.timer_slack_nanos {
            // Never refused; of this thread alone, and kept by exec.
            libc::prctl(libc::PR_SET_TIMERSLACK, nanos);
        }
        if let Some(digits) = shared.pid_digits {
            write_decimal(libc::getpid(), digits);
        }
        read_own_stat(shared);
        let nothing_blocked = 0_u64;
        libc::syscall(libc::SYS_rt_sigprocmask, libc::SIG_SETMASK, &raw const nothing_blocked, ptr::null_mut::<u64>(), KERNEL_SIGSET_BYTES);
        libc::execve(plan.path.as_ptr(), plan.argv.as_ptr(), plan.envp.as_ptr());
        Err((SpawnStep::Exec, errno()))
    }
}

/// Default handlers before signals are let in: exec would reset handlers, but one may come in before, and ignored ones stay ignored.
///
/// # Safety
/// As [`prepare_and_exec`].
unsafe fn reset_signal_handlers() {
    // All zero is SIG_DFL without flags, in the kernel's layout of every architecture. The C library's call refuses its own two signals.
    let default = [0_u64; 8];
    for signal in 1..=SIGNAL_MAX {
        // SAFETY: reads `default`, writes nothing; SIGKILL and SIGSTOP are refused, which is right.
        unsafe { libc::syscall(libc::SYS_rt_sigaction, signal, default.as_ptr(), ptr::null_mut::<u64>(), KERNEL_SIGSET_BYTES) };
    }
}

/// The start time is read here and not by the parent afterwards, who would wait for the kernel's exec lock until the program is loaded.
///
/// # Safety
/// As [`prepare_and_exec`].
unsafe fn read_own_stat(shared: &Shared<'_>) {
    // SAFETY: the buffer is ours alone while the parent stands still.
    unsafe {
        let file = libc::open(c"/proc/self/stat".as_ptr(), libc::O_RDONLY | libc::O_CLOEXEC);
        if file >= 0 {
            let buffer = &mut *shared.stat.get();
            let read = libc::read(file, buffer.as_mut_ptr().cast(), buffer.len());
            *shared.stat_len.get() = usize::try_from(read).unwrap_or(0);
            libc::close(file);
        }
    }
}

/// # Safety
/// As [`prepare_and_exec`].
unsafe fn enter_cgroup(cgroup: c_int) -> Result<(), c_int> {
    // SAFETY: constant strings, a descriptor of the parent's.
    unsafe {
        let file = check(libc::openat(cgroup, c"cgroup.procs".as_ptr(), libc::O_WRONLY | libc::O_CLOEXEC))?;
        if libc::write(file, c"0".as_ptr().cast(), 1) < 0 { Err(errno()) } else { Ok(()) }
    }
}

/// # Safety
/// As [`prepare_and_exec`].
unsafe fn place_descriptors(shared: &Shared<'_>) -> Result<(), c_int> {
    let fds = shared.plan.fds;
    let above = fds.iter().map(|(_, target)| *target).max().unwrap_or(2) + 1;
    // SAFETY: `lifted` is ours alone while the parent stands still; the calls act on this process's own descriptor table.
    unsafe {
        close_all_on_exec();
        let lifted = &mut *shared.lifted.get();
        // First all out of the way, so that no target is a source still to be copied.
        for (slot, (source, _)) in lifted.iter_mut().zip(fds) {
            *slot = check(libc::fcntl(*source, libc::F_DUPFD_CLOEXEC, above))?;
        }
        let null = check(libc::open(c"/dev/null".as_ptr(), libc::O_RDONLY))?;
        if null != 0 {
            check(libc::dup2(null, 0))?;
            libc::close(null);
        }
        for (source, (_, target)) in lifted.iter().zip(fds) {
            check(libc::dup2(*source, *target))?;
        }
    }
    Ok(())
}

/// # Safety
/// As [`prepare_and_exec`].
unsafe fn close_all_on_exec() {
    // SAFETY: marks descriptors of this process's own table.
    unsafe {
        if libc::syscall(libc::SYS_close_range, 3_u32, u32::MAX, libc::CLOSE_RANGE_CLOEXEC) == 0 {
            return;
        }
        let mut limit = MaybeUninit::<libc::rlimit>::zeroed();
        libc::getrlimit(libc::RLIMIT_NOFILE, limit.as_mut_ptr());
        let end = c_int::try_from(limit.assume_init().rlim_cur).unwrap_or(FD_SCAN_MAX).min(FD_SCAN_MAX);
        for fd in 3..end {
            libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC);
        }
    }
}

/// Writes the number and a NUL.
///
/// # Safety
/// Eleven bytes at `to` are writable.
unsafe fn write_decimal(number: c_int, mut to: *mut u8) {
    let mut divisor: c_int = 1_000_000_000;
    let mut leading = true;
    while divisor > 0 {
        // The remainder is below ten.
        let digit = ((number / divisor) % 10) as u8;
        leading = leading && digit == 0 && divisor > 1;
        if !leading {
            // SAFETY: at most ten digits and the NUL.
            unsafe {
                to.write(b'0' + digit);
                to = to.add(1);
            }
        }
        divisor /= 10;
    }
    // SAFETY: as above.
    unsafe { to.write(0) };
}

fn errno() -> c_int {
    // SAFETY: the C library's errno of this thread always exists.
    unsafe { *libc::__errno_location() }
}

fn check(result: c_int) -> Result<c_int, c_int> {
    if result < 0 { Err(errno()) } else { Ok(result) }
}

/// Memory for the child's stack, with a page that faults below it.
struct Stack {
    base: *mut c_void,
}

impl Stack {
    fn new() -> io::Result<Self> {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_STACK | libc::MAP_NORESERVE;
        // SAFETY: a new mapping, of which only this value knows.
        let base = unsafe { libc::mmap(ptr::null_mut(), GUARD_BYTES + STACK_BYTES, libc::PROT_NONE, flags, -1, 0) };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let stack = Self { base };
        // SAFETY: the upper part of the mapping just made.
        if unsafe { libc::mprotect(stack.bottom(), STACK_BYTES, libc::PROT_READ | libc::PROT_WRITE) } < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(stack)
    }

    fn bottom(&self) -> *mut c_void {
        // SAFETY: inside the mapping.
        unsafe { self.base.byte_add(GUARD_BYTES) }
    }

    fn top(&self) -> *mut c_void {
        // SAFETY: one past the end of the mapping.
        unsafe { self.base.byte_add(GUARD_BYTES + STACK_BYTES) }
    }
}

impl Drop for Stack {
    fn drop(&mut self) {
        // SAFETY: our own mapping, and no child runs on it any more.
        unsafe { libc::munmap(self.base, GUARD_BYTES + STACK_BYTES) };
    }
}

/// All signals blocked in this thread until dropped.
struct BlockedSignals {
    before: libc::sigset_t,
}

impl BlockedSignals {
    fn new() -> io::Result<Self> {
        let mut all = MaybeUninit::<libc::sigset_t>::zeroed();
        let mut before = MaybeUninit::<libc::sigset_t>::zeroed();
        // SAFETY: both sets are ours; zeroed ones are valid.
        unsafe {
            libc::sigfillset(all.as_mut_ptr());
            match libc::pthread_sigmask(libc::SIG_SETMASK, all.as_ptr(), before.as_mut_ptr()) {
                0 => Ok(Self { before: before.assume_init() }),
                error => Err(io::Error::from_raw_os_error(error)),
            }
        }
    }
}

impl Drop for BlockedSignals {
    fn drop(&mut self) {
        // SAFETY: restores the set that was read before.
        unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &raw const self.before, ptr::null_mut()) };
    }
}
