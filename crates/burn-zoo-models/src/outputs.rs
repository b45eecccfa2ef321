//! What a model gives, under the names that the `transformers` library has for it.

use burn::tensor::{DType, Tensor};
use burn_zoo_nn::{head::HeadOutput, transformer::Outputs};

use crate::weights::Tensors;

/// A tensor of some rank: its shape and its values in order.
#[derive(Clone, Debug)]
pub struct NamedOutput {
    /// Its name, such as `logits`.
    pub name: &'static str,
    /// Its shape.
    pub shape: Vec<usize>,
    /// Its values, `[product of the shape]`.
    pub values: Tensor<1>,
}

fn named<const D: usize>(name: &'static str, tensor: Tensor<D>) -> NamedOutput {
    NamedOutput {
        name,
        shape: tensor.dims().to_vec(),
        values: tensor.flatten(0, D - 1),
    }
}

/// The outputs that a class of the `transformers` library returns by default: hidden states of a model
/// without a head, and else what the head gives.
pub fn named_outputs(outputs: Outputs) -> Vec<NamedOutput> {
    let mut all = match outputs.head {
        HeadOutput::None => {
            let hidden = named("last_hidden_state", outputs.hidden);
            let pooled = outputs.pooled.map(|pooled| named("pooler_output", pooled));
            [hidden].into_iter().chain(pooled).collect()
        }
        HeadOutput::Tokens(logits) => vec![named("logits", logits)],
        HeadOutput::Pretraining(tokens, next_sentence) => vec![
            named("prediction_logits", tokens),
            named("seq_relationship_logits", next_sentence),
        ],
        HeadOutput::Sequence(logits) => vec![named("logits", logits)],
        HeadOutput::Span(start, end) => {
            vec![named("start_logits", start), named("end_logits", end)]
        }
    };
    all.extend(
        outputs
            .encoder_hidden
            .map(|hidden| named("encoder_last_hidden_state", hidden)),
    );
    all
}

/// Reads them from the device.
pub fn read(outputs: Vec<NamedOutput>) -> Tensors {
    let read = |output: NamedOutput| {
        let data = output.values.into_data().convert_dtype(DType::F32);
        let values = data.try_to_vec::<f32>().expect("just converted");
        (output.name.to_owned(), (output.shape, values))
    };
    outputs.into_iter().map(read).collect()
}
