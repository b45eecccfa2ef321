//! The `burn-zoo` command.

#![recursion_limit = "256"] // wgpu's types are deep.

/// Keeps freed blocks for the next step: training allocates and frees the same tensors each time.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

unsafe extern "C" {
    /// Sets an option of mimalloc, unless the environment does.
    fn mi_option_set_default(option: std::ffi::c_int, value: std::ffi::c_long);
}

/// Has mimalloc keep what is freed, which would otherwise be cleared by the system and read in again at each step, and
/// take it in large pages where there are any.
fn keep_memory() {
    // The numbers of `mi_option_allow_large_os_pages` and `mi_option_purge_delay` in mimalloc.h.
    for (option, value) in [(6, 1), (15, -1)] {
        // SAFETY: it takes any number of an option.
        unsafe { mi_option_set_default(option, value) };
    }
}

fn main() -> std::process::ExitCode {
    // `data` promises a bound on its memory, and allocates other sizes each time.
    if std::env::args_os()
        .nth(1)
        .is_none_or(|command| command != "data")
    {
        keep_memory();
    }
    burn_zoo::cli::main()
}
