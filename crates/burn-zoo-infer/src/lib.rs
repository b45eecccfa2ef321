//! Text generation with a key/value cache.

pub mod generate;
pub mod sampling;
