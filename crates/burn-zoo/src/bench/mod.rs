//! How fast models train, write and encode on this machine, and their operations, and what it could do at most.

mod device;
mod encode;
mod generate;
mod operations;
mod train;

use std::hint::black_box;
use std::ops::Range;
use std::thread;
use std::time::{Duration, Instant};

use burn::tensor::Device;
use burn_zoo_nn::{ConfigError, Transformer, TransformerConfig, init};

pub use device::{DeviceSpeed, device_speed};
pub use encode::{EncodeTimes, encode};
pub use generate::{GenerateTimes, generate};
pub use operations::{LayerSizes, Operation, OperationTimes, operations};
pub use train::{Parts, TrainBench, TrainTimes};

const SEED: u64 = 1337;

/// A model of these sizes with random weights, the same on every call.
///
/// # Errors
///
/// When sizes do not fit together.
pub fn random_model(
    config: &TransformerConfig,
    device: &Device,
) -> Result<Transformer, ConfigError> {
    config.validate()?;
    init::seed(SEED);
    Ok(config.init(device))
}

/// Tokens that look random, the same on every call.
fn tokens(range: Range<usize>, vocab_size: usize) -> Vec<u32> {
    range
        .map(|index| ((index as u64).wrapping_mul(2_654_435_761) % vocab_size as u64) as u32)
        .collect()
}

fn median_ms(mut times: Vec<Duration>) -> f64 {
    times.sort();
    let middle = times.len() / 2;
    let median = match times.len() % 2 {
        1 => times[middle],
        _ => (times[middle - 1] + times[middle]) / 2,
    };
    median.as_secs_f64() * 1e3
}

/// Bytes per second that all cores together read from memory: the best of a few passes over more than caches hold, each
/// core in eight places side by side, which is faster than in one.
pub fn read_bandwidth() -> f64 {
    const BYTES: usize = 1 << 29;
    let memory = vec![1u64; BYTES / size_of::<u64>()];
    let threads = thread::available_parallelism().map_or(1, usize::from);
    let pass = || {
        let clock = Instant::now();
        thread::scope(|scope| {
            for part in memory.chunks(memory.len().div_ceil(threads)) {
                scope.spawn(|| {
                    let place = |place: usize| &part[place * (part.len() / 8)..];
                    let places: [&[u64]; 8] = std::array::from_fn(place);
                    let sums = (0..part.len() / 64).map(|line| {
                        let lines = places.map(|place| &place[8 * line..][..8]);
                        lines
                            .iter()
                            .map(|line| line.iter().sum::<u64>())
                            .sum::<u64>()
                    });
                    black_box(sums.sum::<u64>())
                });
            }
        });
        BYTES as f64 / clock.elapsed().as_secs_f64()
    };
    (0..5).map(|_| pass()).fold(0.0, f64::max)
}
