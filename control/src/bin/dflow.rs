//! The `dflow` command.

/// The node allocates many small, short-lived things on several threads.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> std::process::ExitCode {
    dflow_control::cli::main()
}
