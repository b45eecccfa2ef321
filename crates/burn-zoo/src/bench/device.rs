//! Comparing devices by a small model.

use std::time::{Duration, Instant};

use burn::tensor::Device;
use burn_zoo_models::gpt::GptConfig;
use burn_zoo_train::objective::StepConfig;
use serde::Serialize;

use super::{TrainBench, generate, median_ms, random_model};

/// How fast a device trains nanoGPT's model for a processor (4 layers, width 128, 12 texts of 64 tokens), and writes with
/// it.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct DeviceSpeed {
    /// Tokens that are learned from in a second.
    pub train_tokens_per_second: f64,
    /// Tokens that are written in a second, one text at a time.
    pub decode_tokens_per_second: f64,
}

const CONTEXT: usize = 64;
const BATCH: usize = 12;
const VOCAB_SIZE: usize = 65;
/// For so long steps are measured, but for three at least.
const LONG_ENOUGH: Duration = Duration::from_secs(2);

/// Measures a device, in a few seconds on one that is fast.
pub fn device_speed(device: &Device) -> DeviceSpeed {
    const FITS: &str = "the sizes fit together";
    let config = GptConfig::new(4, 4, 128, CONTEXT).transformer(VOCAB_SIZE);
    let config = config.expect(FITS);
    let mut bench =
        TrainBench::new(&config, [BATCH, CONTEXT], StepConfig::default(), device).expect(FITS);
    // The first steps compile shaders and find memory.
    bench.step();
    bench.step();
    let (clock, mut steps) = (Instant::now(), Vec::new());
    while steps.len() < 3 || clock.elapsed() < LONG_ENOUGH {
        let step = Instant::now();
        bench.step();
        steps.push(step.elapsed());
    }
    drop(bench);
    let model = random_model(&config, device).expect(FITS);
    let half = CONTEXT / 2;
    let times = generate(&model, &config, [half, half], 3, || ()).expect("a GPT is a decoder");
    DeviceSpeed {
        train_tokens_per_second: (BATCH * CONTEXT) as f64 / median_ms(steps) * 1e3,
        decode_tokens_per_second: times.decode_tokens_per_second,
    }
}
