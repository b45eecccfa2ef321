//! How much memory the process has used.

/// The most memory that the process has had resident, in bytes. None where the system does not say.
pub fn peak_bytes() -> Option<u64> {
    #[cfg(target_os = "linux")]
    if let Some(bytes) = high_water_mark() {
        return Some(bytes);
    }
    #[cfg(unix)]
    {
        let mut usage = std::mem::MaybeUninit::<libc::rusage>::uninit();
        // SAFETY: `usage` is a valid place for the result, and is read only when the call succeeds.
        let usage = unsafe {
            if libc::getrusage(libc::RUSAGE_SELF, usage.as_mut_ptr()) != 0 {
                return None;
            }
            usage.assume_init()
        };
        // Linux counts in kibibytes, Apple's systems in bytes.
        let unit = if cfg!(target_vendor = "apple") {
            1
        } else {
            1024
        };
        Some(usage.ru_maxrss as u64 * unit)
    }
    #[cfg(not(unix))]
    {
        None
    }
}

/// Linux's own count, without what the program had that started this one, which `getrusage` includes.
#[cfg(target_os = "linux")]
fn high_water_mark() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kibibytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kibibytes * 1024)
}
