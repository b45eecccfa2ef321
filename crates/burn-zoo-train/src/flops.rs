//! How much of what a machine can compute a training uses: model FLOP utilisation (Chowdhery et al. 2022,
//! arXiv:2204.02311, appendix B).

use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use burn::tensor::{Device, Tensor};
use burn_zoo_nn::{TransformerConfig, head::Projection};

/// Floating-point operations of one token's forward and backward pass: 6 for each parameter that multiplies,
/// and 12 · heads · head width · `seq` for the scores and sums of each attention. The head's parameters multiply only the
/// share of the tokens that is `scored`: those that a masked language model is asked for, or
/// one of a text that is classified.
///
/// As in the paper, a causal attention counts whole, and what is computed again does not count.
pub fn per_token(config: &TransformerConfig, seq: usize, scored: f64) -> f64 {
    let stacks = config.encoder.iter().chain([&config.stack]);
    let attentions = stacks
        .flat_map(|stack| &stack.blocks)
        .flat_map(|block| std::iter::once(&block.attention).chain(block.cross_attention.as_ref()));
    let width: usize = attentions
        .map(|attention| attention.n_heads * attention.head_dim)
        .sum();
    let head = n_in_head(config) as f64;
    let multiplying = n_multiplying(config) as f64 - (1.0 - scored) * head;
    6.0 * multiplying + 12.0 * (width * seq) as f64
}

/// How many parameters multiply each token. Embedding tables do not, unless one is the head as well; of a mixture
/// only the experts that a token takes do.
pub fn n_multiplying(config: &TransformerConfig) -> usize {
    config.n_active_parameters() - config.embedding.n_parameters() + n_tied(config)
}

/// Parameters of the embedding that multiply as the head.
fn n_tied(config: &TransformerConfig) -> usize {
    let head = config.head.language();
    head.map_or(0, |head| match head.projection {
        Projection::Tied => config.vocab_size() * config.d_model(),
        Projection::Untied => 0,
    })
}

/// Parameters of the head, its projection included.
fn n_in_head(config: &TransformerConfig) -> usize {
    config
        .head
        .n_parameters(config.vocab_size(), config.d_model())
        + n_tied(config)
}

/// Operations per second of the fastest square matrix product that was found on a device, in its default
/// type. Measured once a process, in a fraction of a second.
pub fn measured_peak(device: &Device) -> f64 {
    static MEASURED: Mutex<Vec<(Device, f64)>> = Mutex::new(Vec::new());
    let mut measured = MEASURED.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some((_, peak)) = measured.iter().find(|(found, _)| found == device) {
        return *peak;
    }
    let peak = measure(&device.clone().without_autodiff());
    measured.push((device.clone(), peak));
    peak
}

fn measure(device: &Device) -> f64 {
    const SIZES: [usize; 5] = [256, 512, 1024, 2048, 4096];
    // From where on a product is long enough to say what the machine can do.
    const LONG: f64 = 0.02;
    let mut peak = 0f64;
    for size in SIZES {
        let matrix = Tensor::<2>::ones([size, size], device);
        let product = || {
            let started = Instant::now();
            // Reading a number of it waits for the product.
            let product = burn_zoo_ops::linear(matrix.clone(), matrix.clone(), None);
            let _ = product.slice([0..1, 0..1]).into_data();
            started.elapsed().as_secs_f64()
        };
        product();
        let shortest = (0..3).map(|_| product()).fold(f64::INFINITY, f64::min);
        peak = peak.max(2.0 * (size as f64).powi(3) / shortest);
        if shortest > LONG {
            break;
        }
    }
    peak
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn_zoo_nn::block::BlockConfig;

    /// Counted by hand for one block of width 8 with 2 heads, biases and norms included.
    #[test]
    fn a_small_gpt_is_counted_by_hand() {
        let config = TransformerConfig::uniform(11, 16, 1, BlockConfig::gpt2(8, 2));
        let attention = 4 * (8 * 8 + 8);
        let feed_forward = 2 * (8 * 32) + 32 + 8;
        let norms = 3 * (8 + 8);
        let head = 11 * 8;
        let expected = 6 * (attention + feed_forward + norms + head) + 12 * 8 * 16;
        assert_eq!(per_token(&config, 16, 1.0), f64::from(expected));
    }
}
