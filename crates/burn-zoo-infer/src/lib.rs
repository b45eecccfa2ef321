//! Text generation with a key/value cache.

pub mod embed;
pub mod generate;
pub mod sampling;
