//! Calls without a safe wrapper: the number of bytes that a peer has not acknowledged, and returning free memory to the
//! system.
#![allow(unsafe_code, reason = "there is no safe wrapper for these calls")]

/// Returns the number of bytes sent on a socket that the peer has not acknowledged, including those the kernel has not
/// sent yet; `None` if the system cannot report it. On a Unix socket, Linux counts the memory of what the peer has not
/// read.
#[cfg(any(target_os = "linux", target_os = "freebsd", target_os = "netbsd"))]
pub(super) fn unacknowledged_bytes(socket: &std::net::TcpStream) -> Option<u64> {
    use std::ffi::c_int;

    use rustix::ioctl::{Getter, Opcode, ioctl, opcode};

    /// `SIOCOUTQ` (tcp(7)) on Linux, which has the value of `TIOCOUTQ`; `FIONWRITE` on the BSDs.
    const QUEUED: Opcode = if cfg!(target_os = "freebsd") {
        opcode::read::<c_int>(b'f', 119)
    } else if cfg!(target_os = "netbsd") {
        opcode::read::<c_int>(b'f', 121)
    } else if cfg!(any(target_arch = "mips", target_arch = "mips64")) {
        0x7472
    } else if cfg!(any(target_arch = "powerpc", target_arch = "powerpc64", target_arch = "sparc64")) {
        0x4004_7473
    } else {
        0x5411
    };
    // SAFETY: the kernel writes one C int for this operation, and the descriptor is open.
    let bytes: c_int = unsafe { ioctl(socket, Getter::<QUEUED, c_int>::new()) }.ok()?;
    u64::try_from(bytes).ok()
}

/// Returns the number of bytes sent on a TCP socket that the peer has not acknowledged, including those the kernel has
/// not sent yet; `None` if the system cannot report it.
#[cfg(target_vendor = "apple")]
pub(super) fn unacknowledged_bytes(socket: &std::net::TcpStream) -> Option<u64> {
    use std::ffi::{c_int, c_void};
    use std::os::fd::AsRawFd as _;

    unsafe extern "C" {
        fn getsockopt(socket: c_int, level: c_int, name: c_int, value: *mut c_void, len: *mut u32) -> c_int;
    }
    const SOL_SOCKET: c_int = 0xffff;
    const SO_NWRITE: c_int = 0x1024;
    let (mut bytes, mut len): (c_int, u32) = (0, 4);
    // SAFETY: the descriptor is open, and `value` and `len` point to an int and its size for the duration of the call.
    let failed =
        unsafe { getsockopt(socket.as_raw_fd(), SOL_SOCKET, SO_NWRITE, (&raw mut bytes).cast(), &raw mut len) };
    if failed == 0 { u64::try_from(bytes).ok() } else { None }
}

/// Returns the number of bytes sent on a TCP socket that the peer has not acknowledged; `None`, since this system
/// cannot report it.
#[cfg(not(any(target_os = "linux", target_os = "freebsd", target_os = "netbsd", target_vendor = "apple")))]
pub(super) fn unacknowledged_bytes(_: &std::net::TcpStream) -> Option<u64> {
    None
}

/// Returns free memory of the C library's allocator to the system. glibc keeps most of what a burst of load has freed,
/// since a small block above it that is still in use is enough. Takes about 0.1 ms per MiB.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
pub(super) fn release_free_memory() {
    use std::ffi::c_int;

    unsafe extern "C" {
        fn malloc_trim(pad: usize) -> c_int;
    }
    // SAFETY: the function is thread-safe and has no preconditions (malloc_trim(3)). If the program uses another
    // allocator, it has no effect.
    unsafe { malloc_trim(0) };
}

/// Does nothing: other allocators return free memory by themselves, or cannot be asked to.
#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
pub(super) fn release_free_memory() {}
