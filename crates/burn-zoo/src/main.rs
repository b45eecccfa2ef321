//! The `burn-zoo` command.

#![recursion_limit = "256"] // wgpu's types are deep.

/// Keeps freed blocks for the next step: training allocates and frees the same tensors each time.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> std::process::ExitCode {
    burn_zoo::cli::main()
}
