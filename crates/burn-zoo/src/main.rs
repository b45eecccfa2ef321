//! The `burn-zoo` command.
fn main() {}
