//! One model on every device that the compiled-in backends find: the same logits everywhere.
//!
//!     cargo run --release --example pick_backend

use std::error::Error;
use std::time::Instant;

use burn::tensor::{DType, Int, Tensor};
use burn_zoo::{
    backend::{self, Backend},
    models::gpt::GptConfig,
    nn::{LanguageModel, init},
};

fn main() -> Result<(), Box<dyn Error>> {
    let automatic = backend::automatic()?;
    println!(
        "auto picks {}: {}\n",
        automatic.device.name, automatic.reason
    );

    let config = GptConfig::new(4, 4, 128, 64).transformer(65)?;
    let mut first: Option<Vec<f32>> = None;
    for found in Backend::ALL.into_iter().flat_map(Backend::devices) {
        // The same seed gives the same parameters on every device.
        init::seed(1);
        let model = config.init(&found.device);
        let tokens = Tensor::<1, Int>::arange(0..64, &found.device).unsqueeze::<2>();
        // The first pass compiles kernels on some devices.
        model.forward(tokens.clone()).into_data();
        let clock = Instant::now();
        let data = model.forward(tokens).into_data().convert_dtype(DType::F32);
        let elapsed = clock.elapsed();
        let logits = data.try_to_vec::<f32>()?;
        let expected = first.get_or_insert_with(|| logits.clone());
        let differences = logits
            .iter()
            .zip(expected.iter())
            .map(|(a, b)| (a - b).abs());
        println!(
            "{:<16} {:>9.2?} a forward pass, differs from the first by at most {:.1e}",
            found.name,
            elapsed,
            differences.fold(0.0, f32::max)
        );
    }
    Ok(())
}
