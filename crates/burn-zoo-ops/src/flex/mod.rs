//! Kernels for the processor: one pass over memory for each operation, on all cores, in the widest vectors that the
//! processor has.
//!
//! They are for 32-bit floats; other types take the composed forms.

mod activation;
pub(crate) mod adamw;
mod attention;
pub(crate) mod dropout;
mod likelihood;
pub(crate) mod linear;
mod norm;
mod product;
mod projected_loss;
mod quantized;
mod rotary;
mod rows;
mod scale;
mod simd;

use burn::backend::{
    TensorMetadata,
    ops::{FloatTensorOps, ModuleOps},
    tensor::{FloatTensor, IntTensor},
};
use burn_flex::Flex;
use linear::Input;
use simd::are_f32;

use crate::attention::{composed_backward, composed_forward};
use crate::{
    Activation, AdamWStep, Affine, ClassLoss, NormKind, Pairing, PreActivation, ScoreBias, Scoring,
    TransformerOps,
};

fn is_f32(input: &PreActivation<Flex>) -> bool {
    match input {
        PreActivation::Plain(input) => are_f32([input]),
        PreActivation::Gated(gate, up) => are_f32([gate, up]),
    }
}

impl TransformerOps for Flex {
    fn masked_attention(
        query: FloatTensor<Self>,
        key: FloatTensor<Self>,
        value: FloatTensor<Self>,
        bias: ScoreBias<Self>,
        scoring: Scoring,
    ) -> FloatTensor<Self> {
        Self::masked_attention_forward(query, key, value, bias, scoring).0
    }

    fn masked_attention_forward(
        query: FloatTensor<Self>,
        key: FloatTensor<Self>,
        value: FloatTensor<Self>,
        bias: ScoreBias<Self>,
        scoring: Scoring,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        match are_f32([&query, &key, &value]) {
            true => attention::forward(query, key, value, bias, scoring),
            false => composed_forward::<Self>(query, key, value, bias, scoring),
        }
    }

    fn masked_attention_backward(
        query: FloatTensor<Self>,
        key: FloatTensor<Self>,
        value: FloatTensor<Self>,
        bias: ScoreBias<Self>,
        output: FloatTensor<Self>,
        saved: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        scoring: Scoring,
    ) -> (
        FloatTensor<Self>,
        FloatTensor<Self>,
        FloatTensor<Self>,
        FloatTensor<Self>,
    ) {
        if !are_f32([&query, &key, &value]) {
            return composed_backward::<Self>(query, key, value, bias, saved, grad, scoring);
        }
        let ([query, key, value], of_bias) =
            attention::backward([query, key, value], bias, output, &saved, grad, scoring);
        // Nobody reads the gradient of what does not learn.
        (query, key, value, of_bias.unwrap_or(saved))
    }

    fn affine_map(input: FloatTensor<Self>, affine: Affine<Self>) -> FloatTensor<Self> {
        match are_f32([&input]) {
            true => linear::forward(input.into(), affine),
            false => crate::linear::composed::<Self>(input, affine),
        }
    }

    fn affine_map_weight_backward(
        input: FloatTensor<Self>,
        grad: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        match are_f32([&input, &grad]) {
            true => linear::weight_backward(input.into(), grad),
            false => Self::linear_weight_backward(input, grad),
        }
    }

    fn affine_map_bias_backward(grad: FloatTensor<Self>) -> FloatTensor<Self> {
        match are_f32([&grad]) {
            true => linear::bias_backward(grad),
            false => Self::linear_bias_backward(grad),
        }
    }

    fn apply_activation(input: FloatTensor<Self>, activation: Activation) -> FloatTensor<Self> {
        match are_f32([&input]) {
            true => activation::forward(input, activation),
            false => crate::activation::composed::<Self>(input, activation),
        }
    }

    fn apply_activation_backward(
        input: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        activation: Activation,
    ) -> FloatTensor<Self> {
        let backward = match are_f32([&input]) {
            true => activation::backward,
            false => crate::activation::composed_backward::<Self>,
        };
        backward(input, grad, activation)
    }

    fn gated_activation(
        gate: FloatTensor<Self>,
        up: FloatTensor<Self>,
        activation: Activation,
    ) -> FloatTensor<Self> {
        match are_f32([&gate, &up]) {
            true => activation::gated(gate, up, activation),
            false => crate::activation::composed_gated::<Self>(gate, up, activation),
        }
    }

    fn gated_activation_backward(
        gate: FloatTensor<Self>,
        up: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        activation: Activation,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        let backward = match are_f32([&gate, &up, &grad]) {
            true => activation::gated_backward,
            false => crate::activation::composed_gated_backward::<Self>,
        };
        backward(gate, up, grad, activation)
    }

    fn activated_map(
        input: PreActivation<Self>,
        activation: Activation,
        affine: Affine<Self>,
    ) -> FloatTensor<Self> {
        match is_f32(&input) {
            true => linear::forward(Input::activated(input, activation), affine),
            false => crate::linear::composed::<Self>(input.activate(activation), affine),
        }
    }

    fn activated_map_weight_backward(
        input: PreActivation<Self>,
        activation: Activation,
        grad: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        match is_f32(&input) && are_f32([&grad]) {
            true => linear::weight_backward(Input::activated(input, activation), grad),
            false => Self::linear_weight_backward(input.activate(activation), grad),
        }
    }

    fn rotate_pairs(
        input: FloatTensor<Self>,
        cos: FloatTensor<Self>,
        sin: FloatTensor<Self>,
        pairing: Pairing,
    ) -> FloatTensor<Self> {
        let rotate = match are_f32([&input, &cos, &sin]) {
            true => rotary::rotate,
            false => crate::rotary::composed::<Self>,
        };
        rotate(input, cos, sin, pairing)
    }

    fn row_gather(table: FloatTensor<Self>, indices: IntTensor<Self>) -> FloatTensor<Self> {
        match (are_f32([&table]), rows::indices(&indices)) {
            (true, Some(indices)) => rows::gather(table, &indices),
            _ => Self::float_select(table, 0, indices),
        }
    }

    fn row_gather_backward(
        total: FloatTensor<Self>,
        indices: IntTensor<Self>,
        grad: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        match (are_f32([&total, &grad]), rows::indices(&indices)) {
            (true, Some(indices)) => rows::add(total, grad, None, &indices),
            _ => crate::rows::composed_add::<Self>(total, grad, indices),
        }
    }

    fn weighted_row_add(
        total: FloatTensor<Self>,
        rows: FloatTensor<Self>,
        weights: FloatTensor<Self>,
        indices: IntTensor<Self>,
    ) -> FloatTensor<Self> {
        let is_here = are_f32([&total, &rows, &weights]);
        match (is_here, rows::indices(&indices)) {
            (true, Some(indices)) => rows::add(total, rows, Some(weights), &indices),
            _ => crate::rows::composed_add::<Self>(total, Self::float_mul(rows, weights), indices),
        }
    }

    fn weighted_row_add_backward(
        rows: FloatTensor<Self>,
        weights: FloatTensor<Self>,
        indices: IntTensor<Self>,
        grad: FloatTensor<Self>,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        let is_here = are_f32([&rows, &weights, &grad]);
        match (is_here, rows::indices(&indices)) {
            (true, Some(indices)) => rows::weighted_backward(rows, weights, &indices, grad),
            _ => crate::rows::composed_weighted_backward::<Self>(rows, weights, indices, grad),
        }
    }

    fn adamw_update(
        parameter: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        moment_1: FloatTensor<Self>,
        moment_2: FloatTensor<Self>,
        step: AdamWStep,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>) {
        let update = match are_f32([&parameter, &grad, &moment_1, &moment_2]) {
            true => adamw::update,
            false => crate::adamw::composed::<Self>,
        };
        update(parameter, grad, moment_1, moment_2, step)
    }

    fn class_losses_forward(
        logits: FloatTensor<Self>,
        classes: IntTensor<Self>,
        smoothing: f64,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        match (are_f32([&logits]), rows::indices(&classes)) {
            (true, Some(classes)) => likelihood::forward(logits, &classes, smoothing),
            _ => crate::likelihood::composed_forward::<Self>(logits, classes, smoothing),
        }
    }

    fn class_losses_backward(
        logits: FloatTensor<Self>,
        classes: IntTensor<Self>,
        saved: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        smoothing: f64,
    ) -> FloatTensor<Self> {
        match (are_f32([&logits]), rows::indices(&classes)) {
            (true, Some(classes)) => likelihood::backward(logits, &classes, saved, grad, smoothing),
            _ => crate::likelihood::composed_backward::<Self>(
                logits, classes, saved, grad, smoothing,
            ),
        }
    }

    fn class_projection_loss_forward(
        input: FloatTensor<Self>,
        affine: Affine<Self>,
        classes: IntTensor<Self>,
        loss: ClassLoss,
        learned: bool,
    ) -> (
        FloatTensor<Self>,
        FloatTensor<Self>,
        FloatTensor<Self>,
        FloatTensor<Self>,
    ) {
        // The kernel has rows to work on, and something to sum.
        let is_here = are_f32([&input]) && !input.layout().shape().dims::<2>().contains(&0);
        match (is_here, rows::indices(&classes)) {
            (true, Some(classes)) => {
                projected_loss::forward(input, affine, &classes, loss, learned)
            }
            _ => crate::projected_loss::composed_forward::<Self>(
                input, affine, classes, loss, learned,
            ),
        }
    }

    fn quantize(weight: FloatTensor<Self>) -> (IntTensor<Self>, FloatTensor<Self>) {
        let device = weight.device();
        let quantized = are_f32([&weight]).then(|| quantized::of(&weight)).flatten();
        quantized.unwrap_or_else(|| crate::quantized::none::<Self>(&device))
    }

    fn quantized_map(
        input: FloatTensor<Self>,
        numbers: IntTensor<Self>,
        affine: Affine<Self>,
    ) -> FloatTensor<Self> {
        let output = are_f32([&input])
            .then(|| quantized::map(input.clone(), &numbers, affine.clone()))
            .flatten();
        output.unwrap_or_else(|| crate::quantized::composed_map::<Self>(input, numbers, affine))
    }

    fn best_class(
        input: FloatTensor<Self>,
        affine: Affine<Self>,
        numbers: IntTensor<Self>,
        scales: FloatTensor<Self>,
    ) -> IntTensor<Self> {
        let best = are_f32([&input])
            .then(|| quantized::best(input.clone(), affine.clone(), &numbers, &scales))
            .flatten();
        best.unwrap_or_else(|| crate::quantized::composed_best::<Self>(input, affine))
    }

    fn scaled(input: FloatTensor<Self>, factor: FloatTensor<Self>) -> FloatTensor<Self> {
        match are_f32([&input, &factor]) {
            true => scale::scale(input, factor),
            false => crate::scale::composed::<Self>(input, factor),
        }
    }

    fn sum_of_squares(input: FloatTensor<Self>) -> FloatTensor<Self> {
        match are_f32([&input]) {
            true => scale::square_sum(input),
            false => crate::scale::composed_square_sum::<Self>(input),
        }
    }

    fn affine_normalize(
        input: FloatTensor<Self>,
        affine: Affine<Self>,
        kind: NormKind,
        epsilon: f64,
    ) -> FloatTensor<Self> {
        Self::affine_normalize_forward(input, affine, kind, epsilon).0
    }

    fn affine_normalize_forward(
        input: FloatTensor<Self>,
        affine: Affine<Self>,
        kind: NormKind,
        epsilon: f64,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>) {
        match are_f32([&input]) {
            true => norm::forward(input, None, affine, kind, epsilon),
            false => crate::norm::composed_forward::<Self>(input, affine, kind, epsilon),
        }
    }

    fn add_normalize(
        input: FloatTensor<Self>,
        added: FloatTensor<Self>,
        affine: Affine<Self>,
        kind: NormKind,
        epsilon: f64,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        let (sum, output, ..) = Self::add_normalize_forward(input, added, affine, kind, epsilon);
        (sum, output)
    }

    fn add_normalize_forward(
        input: FloatTensor<Self>,
        added: FloatTensor<Self>,
        affine: Affine<Self>,
        kind: NormKind,
        epsilon: f64,
    ) -> (
        FloatTensor<Self>,
        FloatTensor<Self>,
        FloatTensor<Self>,
        FloatTensor<Self>,
    ) {
        if !are_f32([&input, &added]) {
            return crate::norm::composed_sum_forward::<Self>(input, added, affine, kind, epsilon);
        }
        let (output, sum, statistics) = norm::forward(input, Some(added), affine, kind, epsilon);
        (sum.clone(), output, sum, statistics)
    }

    fn affine_normalize_backward(
        saved: FloatTensor<Self>,
        statistics: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        kind: NormKind,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>) {
        let backward = match are_f32([&saved]) {
            true => norm::backward,
            false => crate::norm::composed_backward::<Self>,
        };
        backward(saved, statistics, weight, grad, kind)
    }

    fn random_dropout_forward(
        input: FloatTensor<Self>,
        probability: f64,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        match are_f32([&input]) {
            true => dropout::forward(input, probability),
            false => crate::dropout::composed_forward::<Self>(input, probability),
        }
    }

    fn random_dropout_backward(
        saved: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        probability: f64,
    ) -> FloatTensor<Self> {
        match are_f32([&grad]) {
            true => dropout::backward(&saved, grad, probability),
            false => crate::dropout::composed_backward::<Self>(saved, grad),
        }
    }
}
