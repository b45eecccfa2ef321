//! Transformer operations on Burn's [`Backend`] trait, with a kernel per backend where it pays.
//!
//! In Burn 0.22 a `Tensor` names no backend: a [`Device`](burn::tensor::Device) value picks one at
//! run time and every operation goes `Tensor → Dispatch → Backend`. This crate is the zoo's place
//! on the `Backend` side of that arrow:
//!
//! - [`TransformerOps`] is written once against the `Backend` trait. Each operation has a default
//!   body composed from `Backend` operations, so any backend runs it.
//! - A backend overrides what pays: Flex and Cube have kernels of their own, `LibTorch` uses those of ATen.
//! - `Autodiff<B, C>` carries one hand-written gradient per operation, which serves
//!   every backend, because it only calls the `_forward` and `_backward` methods of the trait.
//!
//! Models call the functions at the crate's root ([`attention`], [`normalize`], [`activate`], [`dropout`], [`adamw`], …), which take and
//! return plain tensors.
//!
//! ```
//! use burn::tensor::{Device, Distribution, Tensor};
//! use burn_zoo_ops::{AttentionMask, Scoring, attention};
//!
//! let device = Device::flex();
//! let query = Tensor::<4>::random([1, 4, 5, 8], Distribution::Default, &device);
//! // Two key/value heads serve four query heads.
//! let key = Tensor::<4>::random([1, 2, 5, 8], Distribution::Default, &device);
//! let scoring = Scoring::scaled(AttentionMask::Causal, 8);
//! let output = attention(query, key.clone(), key, None, scoring);
//! assert_eq!(output.dims(), [1, 4, 5, 8]);
//! ```

// Burn marks NdArray and LibTorch as deprecated in 0.22; the zoo supports both on purpose, and the
// generated dispatch names them.
#![cfg_attr(any(feature = "ndarray", feature = "libtorch"), allow(deprecated))]
// A gradient needs what went in, what came out, and what was kept.
#![allow(clippy::too_many_arguments)]
// Without a backend nothing is dispatched to, so most of the crate looks unused.
#![cfg_attr(
    not(any(
        feature = "flex",
        feature = "ndarray",
        feature = "libtorch",
        feature = "cube"
    )),
    allow(unused)
)]

use burn::backend::{
    Backend, TensorMetadata, backend_extension,
    tensor::{FloatTensor, IntTensor},
};
use burn::tensor::{Int, Tensor};

mod activation;
mod adamw;
mod attention;
mod autodiff;
#[cfg(feature = "ndarray")]
mod backends;
#[cfg(feature = "cube")]
mod cube;
mod dropout;
#[cfg(feature = "flex")]
mod flex;
#[cfg(feature = "libtorch")]
pub mod libtorch;
mod likelihood;
mod linear;
mod norm;
mod projected_loss;
mod quantized;
mod rotary;
mod rows;
mod scale;
mod threads;

pub use activation::{Activation, PreActivation};
pub use adamw::AdamWStep;
pub use attention::{AttentionMask, ScoreBias, Scoring};
pub use norm::{Affine, NormKind};
pub use projected_loss::ClassLoss;
pub use quantized::Quantized;
pub use rotary::Pairing;
pub use threads::{at_once, awake, cores, on_worker, seed};

/// The operations that make a transformer fast, as an extension of Burn's [`Backend`].
///
/// Every operation has three forms. The plain one is used without gradients. The `_forward` form
/// also returns what the `_backward` form needs; the two are a pair, so a backend overrides both or
/// neither.
#[backend_extension(
    Flex: cfg(feature = "flex"),
    NdArray: cfg(feature = "ndarray"),
    LibTorch: cfg(feature = "libtorch"),
    Cube: cfg(feature = "cube"),
    Autodiff
)]
pub trait TransformerOps: Backend {
    /// Scaled dot-product attention, see [`attention`].
    fn masked_attention(
        query: FloatTensor<Self>,
        key: FloatTensor<Self>,
        value: FloatTensor<Self>,
        #[extension_type] bias: ScoreBias<Self>,
        scoring: Scoring,
    ) -> FloatTensor<Self> {
        attention::composed_forward::<Self>(query, key, value, bias, scoring).0
    }

    /// [`masked_attention`](Self::masked_attention) with what its gradient needs.
    ///
    /// Returns the output and a tensor that only the same backend's
    /// [`masked_attention_backward`](Self::masked_attention_backward) reads: the composed form
    /// keeps the probabilities, a fused kernel the log-sum-exp of each row.
    fn masked_attention_forward(
        query: FloatTensor<Self>,
        key: FloatTensor<Self>,
        value: FloatTensor<Self>,
        #[extension_type] bias: ScoreBias<Self>,
        scoring: Scoring,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        attention::composed_forward::<Self>(query, key, value, bias, scoring)
    }

    /// The gradients of attention with respect to query, key, value and bias.
    ///
    /// `saved` is the second result of
    /// [`masked_attention_forward`](Self::masked_attention_forward), `output` its first, and
    /// `grad` the gradient of the output. The last result means something only for
    /// [`ScoreBias::Learned`].
    fn masked_attention_backward(
        query: FloatTensor<Self>,
        key: FloatTensor<Self>,
        value: FloatTensor<Self>,
        #[extension_type] bias: ScoreBias<Self>,
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
        let _ = output;
        attention::composed_backward::<Self>(query, key, value, bias, saved, grad, scoring)
    }

    /// `x W + b`, see [`linear`].
    fn affine_map(
        input: FloatTensor<Self>,
        #[extension_type] affine: Affine<Self>,
    ) -> FloatTensor<Self> {
        linear::composed::<Self>(input, affine)
    }

    /// The gradient of its weight: `[.., d_input]`, `[.., d_output] → [d_input, d_output]`.
    fn affine_map_weight_backward(
        input: FloatTensor<Self>,
        grad: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        Self::linear_weight_backward(input, grad)
    }

    /// The gradient of its bias: the sums of everything but the last dimension, `[.., d_output] → [d_output]`.
    fn affine_map_bias_backward(grad: FloatTensor<Self>) -> FloatTensor<Self> {
        Self::linear_bias_backward(grad)
    }

    /// An activation, see [`activate`].
    fn apply_activation(input: FloatTensor<Self>, activation: Activation) -> FloatTensor<Self> {
        activation::composed::<Self>(input, activation)
    }

    /// Its gradient.
    fn apply_activation_backward(
        input: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        activation: Activation,
    ) -> FloatTensor<Self> {
        activation::composed_backward::<Self>(input, grad, activation)
    }

    /// An activation times a second input, see [`gate`].
    fn gated_activation(
        gate: FloatTensor<Self>,
        up: FloatTensor<Self>,
        activation: Activation,
    ) -> FloatTensor<Self> {
        activation::composed_gated::<Self>(gate, up, activation)
    }

    /// The gradients of both inputs.
    fn gated_activation_backward(
        gate: FloatTensor<Self>,
        up: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        activation: Activation,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        activation::composed_gated_backward::<Self>(gate, up, grad, activation)
    }

    /// A linear layer of an activation, see [`activated_linear`] and [`gated_linear`].
    fn activated_map(
        #[extension_type] input: PreActivation<Self>,
        activation: Activation,
        #[extension_type] affine: Affine<Self>,
    ) -> FloatTensor<Self> {
        Self::affine_map(input.activate(activation), affine)
    }

    /// The gradient of its weight.
    fn activated_map_weight_backward(
        #[extension_type] input: PreActivation<Self>,
        activation: Activation,
        grad: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        Self::affine_map_weight_backward(input.activate(activation), grad)
    }

    /// Rotary positions, see [`rotate`]. With the sines negated it is its own gradient.
    fn rotate_pairs(
        input: FloatTensor<Self>,
        cos: FloatTensor<Self>,
        sin: FloatTensor<Self>,
        pairing: Pairing,
    ) -> FloatTensor<Self> {
        rotary::composed::<Self>(input, cos, sin, pairing)
    }

    /// Rows of a table, see [`gather_rows`].
    fn row_gather(table: FloatTensor<Self>, indices: IntTensor<Self>) -> FloatTensor<Self> {
        Self::float_select(table, 0, indices)
    }

    /// Adds the gradients of the rows `[n_rows, width]` to what the gradient of the table is without them, `[n, width]`.
    fn row_gather_backward(
        total: FloatTensor<Self>,
        indices: IntTensor<Self>,
        grad: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        rows::composed_add::<Self>(total, grad, indices)
    }

    /// A sum of weighted rows, see [`add_rows`].
    fn weighted_row_add(
        total: FloatTensor<Self>,
        rows: FloatTensor<Self>,
        weights: FloatTensor<Self>,
        indices: IntTensor<Self>,
    ) -> FloatTensor<Self> {
        rows::composed_add::<Self>(total, Self::float_mul(rows, weights), indices)
    }

    /// The gradients of rows and weights. That of the total is `grad`.
    fn weighted_row_add_backward(
        rows: FloatTensor<Self>,
        weights: FloatTensor<Self>,
        indices: IntTensor<Self>,
        grad: FloatTensor<Self>,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        rows::composed_weighted_backward::<Self>(rows, weights, indices, grad)
    }

    /// Which values dropout leaves: 1 or 0 for each. Backends that draw otherwise do not ask for it.
    fn dropout_draw(values: FloatTensor<Self>, probability: f64) -> FloatTensor<Self> {
        dropout::composed_draw::<Self>(&values, probability)
    }

    /// Dropout, see [`dropout`].
    fn random_dropout(input: FloatTensor<Self>, probability: f64) -> FloatTensor<Self> {
        Self::random_dropout_forward(input, probability).0
    }

    /// [`random_dropout`](Self::random_dropout), and a tensor that only the same backend's
    /// [`random_dropout_backward`](Self::random_dropout_backward) reads.
    fn random_dropout_forward(
        input: FloatTensor<Self>,
        probability: f64,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        dropout::composed_forward::<Self>(input, probability)
    }

    /// The gradient of dropout with respect to its input.
    fn random_dropout_backward(
        saved: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        probability: f64,
    ) -> FloatTensor<Self> {
        let _ = probability;
        dropout::composed_backward::<Self>(saved, grad)
    }

    /// A step of an optimiser, see [`adamw`]. Returns the parameter and its moments.
    fn adamw_update(
        parameter: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        moment_1: FloatTensor<Self>,
        moment_2: FloatTensor<Self>,
        step: AdamWStep,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>) {
        adamw::composed::<Self>(parameter, grad, moment_1, moment_2, step)
    }

    /// The negative log-likelihood, see [`negative_log_likelihood`].
    fn class_losses(
        logits: FloatTensor<Self>,
        classes: IntTensor<Self>,
        smoothing: f64,
    ) -> FloatTensor<Self> {
        Self::class_losses_forward(logits, classes, smoothing).0
    }

    /// [`class_losses`](Self::class_losses) and a tensor that only the same backend's
    /// [`class_losses_backward`](Self::class_losses_backward) reads: the composed form keeps the log-sum-exp of each row.
    fn class_losses_forward(
        logits: FloatTensor<Self>,
        classes: IntTensor<Self>,
        smoothing: f64,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        likelihood::composed_forward::<Self>(logits, classes, smoothing)
    }

    /// The gradient of the logits.
    fn class_losses_backward(
        logits: FloatTensor<Self>,
        classes: IntTensor<Self>,
        saved: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        smoothing: f64,
    ) -> FloatTensor<Self> {
        likelihood::composed_backward::<Self>(logits, classes, saved, grad, smoothing)
    }

    /// The loss of classes whose logits are the outputs of a linear layer, see [`projected_loss`].
    fn class_projection_loss(
        input: FloatTensor<Self>,
        #[extension_type] affine: Affine<Self>,
        classes: IntTensor<Self>,
        loss: ClassLoss,
    ) -> FloatTensor<Self> {
        projected_loss::composed::<Self>(input, affine, classes, loss)
    }

    /// [`class_projection_loss`](Self::class_projection_loss) and its gradients with respect to input, weight and bias.
    ///
    /// Those of weight and bias mean something only when they are `learned`, that of the bias only where there is one.
    fn class_projection_loss_forward(
        input: FloatTensor<Self>,
        #[extension_type] affine: Affine<Self>,
        classes: IntTensor<Self>,
        loss: ClassLoss,
        learned: bool,
    ) -> (
        FloatTensor<Self>,
        FloatTensor<Self>,
        FloatTensor<Self>,
        FloatTensor<Self>,
    ) {
        projected_loss::composed_forward::<Self>(input, affine, classes, loss, learned)
    }

    /// The matrix of a linear layer in 8 bits, see [`Quantized`]: numbers `[d_output, d_input]` and scales `[d_output]`, or
    /// nothing where there are no kernels for them.
    fn quantize(weight: FloatTensor<Self>) -> (IntTensor<Self>, FloatTensor<Self>) {
        quantized::none::<Self>(&weight.device())
    }

    /// A linear layer by what [`quantize`](Self::quantize) returned, the scales, with the layer's bias.
    fn quantized_map(
        input: FloatTensor<Self>,
        numbers: IntTensor<Self>,
        #[extension_type] affine: Affine<Self>,
    ) -> FloatTensor<Self> {
        quantized::composed_map::<Self>(input, numbers, affine)
    }

    /// The class of each row with the highest logit, found by what [`quantize`](Self::quantize) returned.
    fn best_class(
        input: FloatTensor<Self>,
        #[extension_type] affine: Affine<Self>,
        numbers: IntTensor<Self>,
        scales: FloatTensor<Self>,
    ) -> IntTensor<Self> {
        let _ = (numbers, scales);
        quantized::composed_best::<Self>(input, affine)
    }

    /// All values times a factor `[1]`, see [`scale`].
    fn scaled(input: FloatTensor<Self>, factor: FloatTensor<Self>) -> FloatTensor<Self> {
        scale::composed::<Self>(input, factor)
    }

    /// The sum of all squares `[1]`, see [`square_sum`].
    fn sum_of_squares(input: FloatTensor<Self>) -> FloatTensor<Self> {
        scale::composed_square_sum::<Self>(input)
    }

    /// Layer or root-mean-square normalisation, see [`normalize`].
    fn affine_normalize(
        input: FloatTensor<Self>,
        #[extension_type] affine: Affine<Self>,
        kind: NormKind,
        epsilon: f64,
    ) -> FloatTensor<Self> {
        norm::composed_forward::<Self>(input, affine, kind, epsilon).0
    }

    /// [`affine_normalize`](Self::affine_normalize) with what its gradient needs.
    ///
    /// Returns the output and two tensors that only the same backend's
    /// [`affine_normalize_backward`](Self::affine_normalize_backward) reads: the composed form keeps the normalised
    /// input `[.., d_model]` and the reciprocal standard deviation `[.., 1]`.
    fn affine_normalize_forward(
        input: FloatTensor<Self>,
        #[extension_type] affine: Affine<Self>,
        kind: NormKind,
        epsilon: f64,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>) {
        norm::composed_forward::<Self>(input, affine, kind, epsilon)
    }

    /// A sum and its normalisation, see [`add_normalize`].
    fn add_normalize(
        input: FloatTensor<Self>,
        added: FloatTensor<Self>,
        #[extension_type] affine: Affine<Self>,
        kind: NormKind,
        epsilon: f64,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        let sum = Self::float_add(input, added);
        let output = Self::affine_normalize(sum.clone(), affine, kind, epsilon);
        (sum, output)
    }

    /// [`add_normalize`](Self::add_normalize), and with it what
    /// [`affine_normalize_forward`](Self::affine_normalize_forward) of the sum returns.
    fn add_normalize_forward(
        input: FloatTensor<Self>,
        added: FloatTensor<Self>,
        #[extension_type] affine: Affine<Self>,
        kind: NormKind,
        epsilon: f64,
    ) -> (
        FloatTensor<Self>,
        FloatTensor<Self>,
        FloatTensor<Self>,
        FloatTensor<Self>,
    ) {
        norm::composed_sum_forward::<Self>(input, added, affine, kind, epsilon)
    }

    /// The gradients of normalisation with respect to input, weight and bias.
    ///
    /// The bias gradient is returned whether or not the forward pass had a bias.
    fn affine_normalize_backward(
        normalized: FloatTensor<Self>,
        reciprocal_std: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        kind: NormKind,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>) {
        norm::composed_backward::<Self>(normalized, reciprocal_std, weight, grad, kind)
    }
}

/// Scaled dot-product attention, `dropout(softmax(scale · Q Kᵀ + bias + mask)) V`.
///
/// Grouped-query attention (Ainslie et al. 2023, arXiv:2305.13245) needs no copies: query head `h`
/// reads key/value head `h / (n_heads / n_kv_heads)`.
///
/// # Shapes
///
/// - `query`: `[batch, n_heads, seq_q, head_dim]`
/// - `key`, `value`: `[batch, n_kv_heads, seq_k, head_dim]`
/// - `bias`: `[batch or 1, n_heads or 1, seq_q or 1, seq_k]`. It may be learned.
/// - output: `[batch, n_heads, seq_q, head_dim]`
///
/// # Panics
///
/// When the shapes do not fit: `n_kv_heads` must divide `n_heads`, and a causal mask needs
/// `seq_q ≤ seq_k`, because the queries are the last `seq_q` of the `seq_k` positions. When the share to
/// drop is below 0, or not below 1.
pub fn attention(
    query: Tensor<4>,
    key: Tensor<4>,
    value: Tensor<4>,
    bias: Option<Tensor<4>>,
    scoring: Scoring,
) -> Tensor<4> {
    let bias_dims = bias.as_ref().map(Tensor::dims);
    attention::check_shapes(
        query.dims(),
        key.dims(),
        value.dims(),
        bias_dims,
        scoring.mask,
    );
    check_probability(scoring.dropout, "attention");
    Tensor::from_dispatch(
        <burn::backend::Dispatch as TransformerOps>::masked_attention(
            query.into_dispatch(),
            key.into_dispatch(),
            value.into_dispatch(),
            match bias {
                Some(bias) => ScoreBias::Added(bias.into_dispatch()),
                None => ScoreBias::None,
            },
            scoring,
        ),
    )
}

/// `x W + b`, `[.., d_input] → [.., d_output]`.
///
/// # Shapes
///
/// - `weight`: `[d_input, d_output]`
/// - `bias`: `[d_output]`
///
/// # Panics
///
/// When the shapes do not fit.
pub fn linear<const D: usize>(
    input: Tensor<D>,
    weight: Tensor<2>,
    bias: Option<Tensor<1>>,
) -> Tensor<D> {
    let affine = affine_of("linear", &input, weight, bias);
    Tensor::from_dispatch(<burn::backend::Dispatch as TransformerOps>::affine_map(
        input.into_dispatch(),
        affine,
    ))
}

/// The matrix and bias of a linear layer that fit the input of an operation.
fn affine_of<const D: usize>(
    operation: &str,
    input: &Tensor<D>,
    weight: Tensor<2>,
    bias: Option<Tensor<1>>,
) -> Affine<burn::backend::Dispatch> {
    let [d_input, d_output] = weight.dims();
    assert_eq!(
        input.dims().last(),
        Some(&d_input),
        "{operation}: the input must have the rows of the weight as its last dimension"
    );
    assert!(
        bias.as_ref().is_none_or(|bias| bias.dims() == [d_output]),
        "{operation}: the bias must have the columns of the weight ({d_output})"
    );
    Affine::new(weight.into_dispatch(), bias.map(Tensor::into_dispatch))
}

/// `activation(x) W + b`, the second half of a feed-forward network. Its gradient keeps `x` and computes the activation
/// again, so that of the widest values of a block one copy is kept and not two.
///
/// # Shapes
///
/// - `input`: `[.., d_input]`
/// - `weight`: `[d_input, d_output]`
/// - `bias`: `[d_output]`
/// - output: `[.., d_output]`
///
/// # Panics
///
/// When the shapes do not fit.
///
/// ```
/// use burn::tensor::{Device, Tensor};
/// use burn_zoo_ops::{Activation, activate, activated_linear, linear};
///
/// let device = Device::flex();
/// let (input, weight) = (Tensor::<2>::ones([3, 4], &device), Tensor::<2>::ones([4, 5], &device));
/// let output = activated_linear(input.clone(), Activation::Gelu, weight.clone(), None);
/// let expected = linear(activate(input, Activation::Gelu), weight, None);
/// output.into_data().assert_eq(&expected.into_data(), true);
/// ```
pub fn activated_linear<const D: usize>(
    input: Tensor<D>,
    activation: Activation,
    weight: Tensor<2>,
    bias: Option<Tensor<1>>,
) -> Tensor<D> {
    let affine = affine_of("activated_linear", &input, weight, bias);
    Tensor::from_dispatch(<burn::backend::Dispatch as TransformerOps>::activated_map(
        PreActivation::Plain(input.into_dispatch()),
        activation,
        affine,
    ))
}

/// `(activation(gate) ∘ up) W + b`, the second half of a gated feed-forward network. As of [`activated_linear`], its gradient keeps
/// gate and up alone.
///
/// # Shapes
///
/// - `gate`, `up`: `[.., d_input]`
/// - `weight`: `[d_input, d_output]`
/// - `bias`: `[d_output]`
/// - output: `[.., d_output]`
///
/// # Panics
///
/// When the shapes do not fit.
pub fn gated_linear<const D: usize>(
    gate: Tensor<D>,
    up: Tensor<D>,
    activation: Activation,
    weight: Tensor<2>,
    bias: Option<Tensor<1>>,
) -> Tensor<D> {
    check_gate(&gate, &up);
    let affine = affine_of("gated_linear", &up, weight, bias);
    Tensor::from_dispatch(<burn::backend::Dispatch as TransformerOps>::activated_map(
        PreActivation::Gated(gate.into_dispatch(), up.into_dispatch()),
        activation,
        affine,
    ))
}

/// An activation of each value, `[..] → [..]`, whose gradient keeps the input alone.
pub fn activate<const D: usize>(input: Tensor<D>, activation: Activation) -> Tensor<D> {
    Tensor::from_dispatch(
        <burn::backend::Dispatch as TransformerOps>::apply_activation(
            input.into_dispatch(),
            activation,
        ),
    )
}

/// `activation(gate) ∘ up`, the middle of a gated feed-forward network (Shazeer 2020, arXiv:2002.05202): GEGLU with GELU,
/// SwiGLU with SiLU. Its gradient keeps the two inputs alone.
///
/// # Panics
///
/// When the shapes differ.
pub fn gate<const D: usize>(gate: Tensor<D>, up: Tensor<D>, activation: Activation) -> Tensor<D> {
    check_gate(&gate, &up);
    Tensor::from_dispatch(
        <burn::backend::Dispatch as TransformerOps>::gated_activation(
            gate.into_dispatch(),
            up.into_dispatch(),
            activation,
        ),
    )
}

fn check_gate<const D: usize>(gate: &Tensor<D>, up: &Tensor<D>) {
    assert_eq!(
        gate.dims(),
        up.dims(),
        "gate: both inputs must have one shape"
    );
}

/// Turns pairs of channels: `(x, y) → (x cos − y sin, y cos + x sin)`, rotary positions (Su et al. 2021,
/// arXiv:2104.09864). Channels behind those of the pairs stay.
///
/// # Shapes
///
/// - `input`, output: `[batch, n_heads, seq, head_dim]`
/// - `cos`, `sin`: `[batch or 1, 1, seq, n_pairs]`. They are not learned.
///
/// # Panics
///
/// When the shapes do not fit.
pub fn rotate(input: Tensor<4>, cos: Tensor<4>, sin: Tensor<4>, pairing: Pairing) -> Tensor<4> {
    rotary::check_shapes(input.dims(), cos.dims(), sin.dims());
    Tensor::from_dispatch(<burn::backend::Dispatch as TransformerOps>::rotate_pairs(
        input.into_dispatch(),
        cos.into_dispatch(),
        sin.into_dispatch(),
        pairing,
    ))
}

/// Rows of a table, as an embedding looks them up and experts take their tokens. The gradient is added to what the table
/// has already, so that a large table that is used twice, as that of a tied head, has one gradient in memory and not two.
///
/// # Shapes
///
/// - `table`: `[n, width]`
/// - `indices`: `[n_rows]`, each below `n`
/// - output: `[n_rows, width]`
pub fn gather_rows(table: Tensor<2>, indices: Tensor<1, Int>) -> Tensor<2> {
    Tensor::from_dispatch(<burn::backend::Dispatch as TransformerOps>::row_gather(
        table.into_dispatch(),
        indices.into_dispatch(),
    ))
}

/// Adds each row, times its weight, to the row of the total that its index names, as the outputs of experts are.
///
/// # Shapes
///
/// - `total`, output: `[n, width]`
/// - `rows`: `[n_rows, width]`
/// - `weights`: `[n_rows, 1]`
/// - `indices`: `[n_rows]`, each below `n`
///
/// # Panics
///
/// When the shapes do not fit.
pub fn add_rows(
    total: Tensor<2>,
    rows: Tensor<2>,
    weights: Tensor<2>,
    indices: Tensor<1, Int>,
) -> Tensor<2> {
    let ([_, width], [n_rows, of_rows]) = (total.dims(), rows.dims());
    assert!(
        width == of_rows && weights.dims() == [n_rows, 1] && indices.dims() == [n_rows],
        "add_rows: rows [{n_rows}, {of_rows}] must have the total's width ({width}), and each a weight and an index"
    );
    Tensor::from_dispatch(
        <burn::backend::Dispatch as TransformerOps>::weighted_row_add(
            total.into_dispatch(),
            rows.into_dispatch(),
            weights.into_dispatch(),
            indices.into_dispatch(),
        ),
    )
}

/// A step of AdamW: the parameter after it, and the means of gradients and of their squares, which begin at 0. All of
/// one shape.
///
/// # Panics
///
/// When shapes differ.
pub fn adamw<const D: usize>(
    parameter: Tensor<D>,
    grad: Tensor<D>,
    moments: [Tensor<D>; 2],
    step: AdamWStep,
) -> (Tensor<D>, [Tensor<D>; 2]) {
    let [moment_1, moment_2] = moments;
    for (what, shape) in [
        ("gradient", grad.dims()),
        ("first moment", moment_1.dims()),
        ("second moment", moment_2.dims()),
    ] {
        let of_parameter = parameter.dims();
        assert_eq!(
            shape, of_parameter,
            "adamw: the {what} must have the parameter's shape"
        );
    }
    let (parameter, moment_1, moment_2) = <burn::backend::Dispatch as TransformerOps>::adamw_update(
        parameter.into_dispatch(),
        grad.into_dispatch(),
        moment_1.into_dispatch(),
        moment_2.into_dispatch(),
        step,
    );
    let moments = [moment_1, moment_2].map(Tensor::from_dispatch);
    (Tensor::from_dispatch(parameter), moments)
}

/// All values times a factor `[1]`, in their place where the backend can: gradients that are clipped. `[..] → [..]`.
pub fn scale<const D: usize>(input: Tensor<D>, factor: Tensor<1>) -> Tensor<D> {
    Tensor::from_dispatch(<burn::backend::Dispatch as TransformerOps>::scaled(
        input.into_dispatch(),
        factor.into_dispatch(),
    ))
}

/// The sum of the squares of all values, `[..] → [1]`, without a copy of them where the backend can.
pub fn square_sum<const D: usize>(input: Tensor<D>) -> Tensor<1> {
    Tensor::from_dispatch(<burn::backend::Dispatch as TransformerOps>::sum_of_squares(
        input.into_dispatch(),
    ))
}

/// `-log p(class)` in nats of each row, where `p` is the softmax of its logits. `smoothing` of each class's probability
/// is spread over all (Szegedy et al. 2016, arXiv:1512.00567).
///
/// # Shapes
///
/// - `logits`: `[rows, n_classes]`
/// - `classes`: `[rows]`, each below `n_classes`
/// - output: `[rows]`
///
/// # Panics
///
/// When the shapes do not fit.
pub fn negative_log_likelihood(
    logits: Tensor<2>,
    classes: Tensor<1, Int>,
    smoothing: f64,
) -> Tensor<1> {
    let ([rows, _], [n]) = (logits.dims(), classes.dims());
    assert_eq!(rows, n, "negative_log_likelihood: each row needs a class");
    Tensor::from_dispatch(<burn::backend::Dispatch as TransformerOps>::class_losses(
        logits.into_dispatch(),
        classes.into_dispatch(),
        smoothing,
    ))
}

/// `scale · Σ −log p(class)` in nats over all rows, where `p` is the softmax of `x W + b`, as [`linear`] and
/// [`negative_log_likelihood`] have it, but a block of rows after the other: `[rows, n_classes]` never exists whole.
///
/// With gradients wanted, they are made of the same blocks at once, so that nothing is computed twice.
///
/// # Shapes
///
/// - `input`: `[rows, d_input]`, with at least one row
/// - `weight`: `[d_input, n_classes]`
/// - `bias`: `[n_classes]`
/// - `classes`: `[rows]`, each below `n_classes`
/// - output: `[1]`
///
/// # Panics
///
/// When the shapes do not fit.
///
/// ```
/// use burn::tensor::{Device, Int, Tensor};
/// use burn_zoo_ops::{ClassLoss, projected_loss};
///
/// let device = Device::flex();
/// let (input, weight) = (Tensor::<2>::ones([3, 4], &device), Tensor::<2>::ones([4, 5], &device));
/// let classes = Tensor::<1, Int>::zeros([3], &device);
/// let mean = ClassLoss { smoothing: 0.0, scale: 1.0 / 3.0 };
/// let loss: f32 = projected_loss(input, weight, None, classes, mean).into_scalar();
/// // All of the five classes are as likely.
/// assert!((loss - 5f32.ln()).abs() < 1e-6);
/// ```
pub fn projected_loss(
    input: Tensor<2>,
    weight: Tensor<2>,
    bias: Option<Tensor<1>>,
    classes: Tensor<1, Int>,
    loss: ClassLoss,
) -> Tensor<1> {
    let [rows, _] = input.dims();
    assert!(
        rows > 0 && classes.dims() == [rows],
        "projected_loss: there must be rows, and each needs a class"
    );
    let affine = affine_of("projected_loss", &input, weight, bias);
    Tensor::from_dispatch(
        <burn::backend::Dispatch as TransformerOps>::class_projection_loss(
            input.into_dispatch(),
            affine,
            classes.into_dispatch(),
            loss,
        ),
    )
}

/// Makes each value 0 with some probability and divides the others by what is left of 1, so that the mean stays
/// (Srivastava et al. 2014). `[..] → [..]`. The draws follow from the seed of the device.
///
/// # Panics
///
/// When the probability is below 0, or not below 1.
pub fn dropout<const D: usize>(input: Tensor<D>, probability: f64) -> Tensor<D> {
    check_probability(probability, "dropout");
    Tensor::from_dispatch(<burn::backend::Dispatch as TransformerOps>::random_dropout(
        input.into_dispatch(),
        probability,
    ))
}

fn check_probability(probability: f64, operation: &str) {
    assert!(
        (0.0..1.0).contains(&probability),
        "{operation}: the probability to drop must be at least 0 and below 1, got {probability}"
    );
}

/// Normalises the last dimension, then scales by `weight` and shifts by `bias`.
///
/// [`NormKind::Layer`] is LayerNorm (Ba et al. 2016, arXiv:1607.06450), [`NormKind::Rms`] is
/// RMSNorm (Zhang & Sennrich 2019, arXiv:1910.07467). `epsilon` is added to the variance.
///
/// # Shapes
///
/// - `input`, output: `[.., d_model]`
/// - `weight`, `bias`: `[d_model]`
///
/// # Panics
///
/// When `weight` or `bias` has another length than the input's last dimension.
pub fn normalize<const D: usize>(
    input: Tensor<D>,
    weight: Tensor<1>,
    bias: Option<Tensor<1>>,
    kind: NormKind,
    epsilon: f64,
) -> Tensor<D> {
    norm::check_shapes(
        &input.dims(),
        weight.dims(),
        bias.as_ref().map(Tensor::dims),
    );
    Tensor::from_dispatch(
        <burn::backend::Dispatch as TransformerOps>::affine_normalize(
            input.into_dispatch(),
            Affine::new(weight.into_dispatch(), bias.map(Tensor::into_dispatch)),
            kind,
            epsilon,
        ),
    )
}

/// The sum of two inputs, and what [`normalize`] makes of it: a residual connection and the norm that follows, in one pass.
///
/// # Panics
///
/// When the shapes differ, or `weight` or `bias` has another length than their last dimension.
pub fn add_normalize<const D: usize>(
    input: Tensor<D>,
    added: Tensor<D>,
    weight: Tensor<1>,
    bias: Option<Tensor<1>>,
    kind: NormKind,
    epsilon: f64,
) -> (Tensor<D>, Tensor<D>) {
    assert_eq!(
        input.dims(),
        added.dims(),
        "add_normalize: both inputs must have one shape"
    );
    norm::check_shapes(
        &input.dims(),
        weight.dims(),
        bias.as_ref().map(Tensor::dims),
    );
    let (sum, output) = <burn::backend::Dispatch as TransformerOps>::add_normalize(
        input.into_dispatch(),
        added.into_dispatch(),
        Affine::new(weight.into_dispatch(), bias.map(Tensor::into_dispatch)),
        kind,
        epsilon,
    );
    (Tensor::from_dispatch(sum), Tensor::from_dispatch(output))
}
