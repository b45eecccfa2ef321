//! LibTorch's own kernels: activations, the likelihoods of classes, and attention by its fused scaled-dot-product. On a
//! processor, and where Flex is compiled in, AdamW is Flex's one pass, on LibTorch's memory.
//!
//! On a processor, training and inference use ATen's flash attention, whose backward pass
//! recomputes the probabilities from the log-sum-exp of each row. Elsewhere (CUDA, MPS) inference
//! uses `scaled_dot_product_attention`, which picks its own kernel, and training the composed form. So does
//! training everywhere that learns a bias or drops probabilities, in memory that grows with the square of the context.
//!
//! Things that are computed [at once](crate::at_once), each on a core of its own, have their linear layers multiplied by Flex,
//! again on LibTorch's memory. On all cores together, OpenMP's threads and rayon's would take them from each other.
//!
//! Two conventions differ from ours. ATen's `is_causal` aligns the mask to the top left, so a
//! cached prefix needs an explicit mask; and its kernels want as many key as query heads, so
//! grouped heads are expanded and their gradients summed.

#[cfg(feature = "flex")]
use burn::backend::ops::ModuleOps;
use burn::backend::{
    TensorMetadata,
    tensor::{FloatTensor, IntTensor},
};
use burn_tch::{LibTorch, TchTensor};
use tch::{Kind, Tensor};

use crate::{Activation, AttentionMask, ScoreBias, Scoring, TransformerOps, activation, attention};
#[cfg(feature = "flex")]
use crate::{AdamWStep, Affine, threads};

/// How ATen is told about a mask.
struct Masking {
    is_causal: bool,
    /// Added to the scores, `[1, 1, seq_q, seq_k]`.
    bias: Option<Tensor>,
}

impl Masking {
    fn new(mask: AttentionMask, query: &TchTensor, key: &TchTensor) -> Self {
        let [_, _, seq_q, _] = query.shape().dims();
        let [_, _, seq_k, _] = key.shape().dims();
        if mask.is_trivial(seq_q, seq_k) {
            return Self {
                is_causal: false,
                bias: None,
            };
        }
        if mask == AttentionMask::Causal && seq_q == seq_k {
            return Self {
                is_causal: true,
                bias: None,
            };
        }
        let device = query.device();
        let bias = attention::mask_bias::<LibTorch>(mask, seq_q, seq_k, &device, query.dtype());
        Self {
            is_causal: false,
            bias: Some(bias.tensor),
        }
    }

    /// ATen takes one bias, so what is added besides the mask makes the mask one too.
    fn with_bias(
        bias: ScoreBias<LibTorch>,
        mask: AttentionMask,
        query: &TchTensor,
        key: &TchTensor,
    ) -> Self {
        let Some(bias) = bias.tensor() else {
            return Self::new(mask, query, key);
        };
        let [_, _, seq_q, _] = query.shape().dims();
        let [_, _, seq_k, _] = key.shape().dims();
        let bias = match mask.is_trivial(seq_q, seq_k) {
            true => bias.tensor,
            false => {
                let device = query.device();
                let dtype = query.dtype();
                bias.tensor
                    + attention::mask_bias::<LibTorch>(mask, seq_q, seq_k, &device, dtype).tensor
            }
        };
        Self {
            is_causal: false,
            bias: Some(bias),
        }
    }
}

/// ATen's processor kernel reads heads as rows, and called by its own name does not check that they are.
fn with_rows(tensor: &TchTensor) -> Tensor {
    match tensor.tensor.stride().last() {
        Some(1) | None => tensor.tensor.shallow_clone(),
        Some(_) => tensor.tensor.contiguous(),
    }
}

/// What the forward pass of ATen's processor kernel saves: the log-sum-exp, which has one dimension
/// less than the probabilities that the composed form saves.
fn is_flash(saved: &TchTensor) -> bool {
    saved.tensor.dim() == 3
}

/// `[batch, n_kv_heads, seq, head_dim] → [batch, n_heads, seq, head_dim]`.
fn expand_groups(tensor: &Tensor, n_heads: i64) -> Tensor {
    let n_kv_heads = tensor.size()[1];
    match n_heads / n_kv_heads {
        1 => tensor.shallow_clone(),
        group => tensor.repeat_interleave_self_int(group, 1, None),
    }
}

/// The gradient of [`expand_groups`].
fn sum_groups(grad: Tensor, n_kv_heads: i64) -> Tensor {
    let [batch, n_heads, seq, head_dim] = grad.size()[..] else {
        unreachable!("attention gradients have four dimensions")
    };
    if n_heads == n_kv_heads {
        return grad;
    }
    grad.reshape([batch, n_kv_heads, n_heads / n_kv_heads, seq, head_dim])
        .sum_dim_intlist(2, false, None)
}

/// The tensor, or a copy whose values lie side by side and are nobody else's.
#[cfg(feature = "flex")]
fn owned(tensor: TchTensor) -> TchTensor {
    match (tensor.tensor.is_contiguous(), tensor.can_mut()) {
        (true, true) => tensor,
        (true, false) => TchTensor::new(tensor.tensor.copy()),
        (false, _) => TchTensor::new(tensor.tensor.contiguous()),
    }
}

/// Whether these are 32-bit floats in the processor's memory. What is empty may have no address.
#[cfg(feature = "flex")]
fn are_here<const N: usize>(tensors: [&TchTensor; N]) -> bool {
    tensors.iter().all(|tensor| {
        let tensor = &tensor.tensor;
        tensor.device() == tch::Device::Cpu && tensor.kind() == Kind::Float && tensor.numel() > 0
    })
}

/// The shape of a tensor.
#[cfg(feature = "flex")]
fn sizes(tensor: &Tensor) -> Vec<usize> {
    let size = tensor.size();
    size.into_iter().map(|length| length as usize).collect()
}

/// A tensor in the processor's memory that is written before it is read.
#[cfg(feature = "flex")]
fn room(size: &[i64]) -> Tensor {
    Tensor::empty(size, (Kind::Float, tch::Device::Cpu))
}

/// LibTorch's processor.
#[cfg(feature = "flex")]
#[expect(
    deprecated,
    reason = "Burn drops LibTorch after 0.22; the zoo has it on purpose"
)]
pub(crate) fn processor() -> burn::tensor::Device {
    burn::tensor::Device::libtorch()
}

/// With how many threads LibTorch computed before any was told otherwise: who asks later might ask a thread that knows no better.
#[cfg(feature = "flex")]
pub(crate) fn threads() -> usize {
    static COUNT: std::sync::OnceLock<usize> = std::sync::OnceLock::new();
    *COUNT.get_or_init(|| tch::get_num_threads() as usize)
}

/// Random bits of LibTorch's generator for the processor.
#[cfg(feature = "flex")]
pub(crate) fn draw() -> u64 {
    let drawn = Tensor::randint(1 << 32, [2], (Kind::Int64, tch::Device::Cpu));
    (drawn.int64_value(&[0]) << 32 | drawn.int64_value(&[1])) as u64
}

/// # Safety
///
/// The tensor has 32-bit floats side by side in the processor's memory.
#[cfg(feature = "flex")]
unsafe fn floats(tensor: &Tensor) -> &[f32] {
    // SAFETY: as promised.
    unsafe { std::slice::from_raw_parts(tensor.data_ptr().cast(), tensor.numel()) }
}

/// # Safety
///
/// As [`floats`], and nobody else uses them.
#[cfg(feature = "flex")]
unsafe fn floats_mut(tensor: &mut Tensor) -> &mut [f32] {
    // SAFETY: as promised.
    unsafe { std::slice::from_raw_parts_mut(tensor.data_ptr().cast(), tensor.numel()) }
}

impl TransformerOps for LibTorch {
    fn masked_attention(
        query: FloatTensor<Self>,
        key: FloatTensor<Self>,
        value: FloatTensor<Self>,
        bias: ScoreBias<Self>,
        scoring: Scoring,
    ) -> FloatTensor<Self> {
        if scoring.dropout > 0.0 {
            return attention::composed_forward::<Self>(query, key, value, bias, scoring).0;
        }
        let masking = Masking::with_bias(bias, scoring.mask, &query, &key);
        let n_heads = query.tensor.size()[1];
        TchTensor::new(Tensor::scaled_dot_product_attention(
            &query.tensor,
            &expand_groups(&key.tensor, n_heads),
            &expand_groups(&value.tensor, n_heads),
            masking.bias,
            0.0,
            masking.is_causal,
            Some(scoring.scale),
            false,
        ))
    }

    #[cfg(feature = "flex")]
    fn affine_map(input: FloatTensor<Self>, affine: Affine<Self>) -> FloatTensor<Self> {
        let is_here = match &affine {
            Affine::Scale(weight) => are_here([&input, weight]),
            Affine::ScaleShift(weight, bias) => are_here([&input, weight, bias]),
        };
        if !threads::is_alone() || !is_here {
            return crate::linear::composed::<Self>(input, affine);
        }
        let (weight, bias) = affine.into_parts();
        let (weight, input) = (weight.tensor, input.tensor.contiguous());
        let bias = bias.map(|bias| bias.tensor.contiguous());
        let [inner, width] = sizes(&weight)[..] else {
            unreachable!("a linear layer's weight is a matrix")
        };
        let mut size = input.size();
        let last = size.last_mut().expect("a linear layer's input has rows");
        let is_fit = *last == inner as i64;
        assert!(is_fit, "the input has the weight's rows");
        *last = width as i64;
        let has_width = |bias: &Tensor| bias.numel() == width;
        assert!(
            bias.as_ref().is_none_or(has_width),
            "the bias has the weight's columns"
        );
        let mut output = room(&size);
        let rows = input.numel() / inner;
        let strides = weight.stride();
        let strides = [strides[0] as isize, strides[1] as isize];
        // SAFETY: the tensors have these sizes in the processor's memory, and the output is new.
        unsafe {
            let bias = bias.as_ref().map(|bias| floats(bias));
            let target = floats_mut(&mut output).as_mut_ptr();
            let input = (floats(&input).as_ptr(), [inner as isize, 1]);
            let weights = (weight.data_ptr().cast_const().cast(), strides);
            let sizes = [rows, width, inner];
            crate::flex::linear::multiply(sizes, target, bias, [input, weights]);
        }
        TchTensor::new(output)
    }

    #[cfg(feature = "flex")]
    fn affine_map_weight_backward(
        input: FloatTensor<Self>,
        grad: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        if !threads::is_alone() || !are_here([&input, &grad]) {
            return Self::linear_weight_backward(input, grad);
        }
        let (input, grad) = (input.tensor.contiguous(), grad.tensor.contiguous());
        let last = |tensor: &Tensor| sizes(tensor)[tensor.dim() - 1];
        let (inner, width) = (last(&input), last(&grad));
        let is_fit = input.numel() / inner == grad.numel() / width;
        assert!(is_fit, "the gradient has the input's rows");
        let mut output = room(&[inner as i64, width as i64]);
        // SAFETY: the tensors have these sizes in the processor's memory, and the output is new.
        unsafe {
            let target = floats_mut(&mut output).as_mut_ptr();
            let sizes = [inner, width, input.numel() / inner];
            let input = (floats(&input).as_ptr(), [1, inner as isize]);
            let grad = (floats(&grad).as_ptr(), [width as isize, 1]);
            crate::flex::linear::multiply(sizes, target, None, [input, grad]);
        }
        TchTensor::new(output)
    }

    /// Draws of one of several things that are computed at once follow from its own seed.
    #[cfg(feature = "flex")]
    fn dropout_draw(values: FloatTensor<Self>, probability: f64) -> FloatTensor<Self> {
        use crate::flex::dropout::{Draws, draw_seed};

        if !threads::has_stream() || !are_here([&values]) {
            return crate::dropout::composed_draw::<Self>(&values, probability);
        }
        let mut kept = Tensor::ones(values.tensor.size(), (Kind::Float, tch::Device::Cpu));
        let draws = Draws::new(draw_seed().storage(), probability);
        // SAFETY: it is new, and in the processor's memory.
        draws.apply(unsafe { floats_mut(&mut kept) }, 0);
        TchTensor::new(kept.gt(0.0).to_kind(Kind::Float))
    }

    fn apply_activation(input: FloatTensor<Self>, activation: Activation) -> FloatTensor<Self> {
        TchTensor::new(match activation {
            Activation::Relu => input.tensor.relu(),
            Activation::Tanh => input.tensor.tanh(),
            Activation::Gelu => input.tensor.gelu("none"),
            Activation::GeluTanh => input.tensor.gelu("tanh"),
            Activation::Silu => input.tensor.silu(),
        })
    }

    fn apply_activation_backward(
        input: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        activation: Activation,
    ) -> FloatTensor<Self> {
        TchTensor::new(match activation {
            Activation::Relu | Activation::Tanh => {
                return activation::composed_backward::<Self>(input, grad, activation);
            }
            Activation::Gelu => input.tensor.gelu_backward(&grad.tensor, "none"),
            Activation::GeluTanh => input.tensor.gelu_backward(&grad.tensor, "tanh"),
            Activation::Silu => input.tensor.silu_backward(&grad.tensor),
        })
    }

    /// Saves the logarithms of the probabilities.
    fn class_losses_forward(
        logits: FloatTensor<Self>,
        classes: IntTensor<Self>,
        smoothing: f64,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        let logarithms = logits.tensor.log_softmax(-1, None);
        let classes = classes.tensor.to_kind(Kind::Int64).unsqueeze(-1);
        let mut expected = logarithms.gather(-1, &classes, false).squeeze_dim(-1);
        if smoothing > 0.0 {
            let mean = logarithms.mean_dim(Some([-1].as_slice()), false, None);
            expected = expected.lerp(&mean, smoothing);
        }
        (TchTensor::new(-expected), TchTensor::new(logarithms))
    }

    fn class_losses_backward(
        _logits: FloatTensor<Self>,
        classes: IntTensor<Self>,
        saved: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        smoothing: f64,
    ) -> FloatTensor<Self> {
        let classes = classes.tensor.to_kind(Kind::Int64).unsqueeze(-1);
        let grad = grad.tensor.unsqueeze(-1);
        let mut difference = saved.tensor.exp();
        if smoothing > 0.0 {
            let n_classes = *difference.size().last().expect("rows of classes");
            let _ = difference.g_sub_scalar_(smoothing / n_classes as f64);
        }
        let _ = difference.g_mul_(&grad);
        let wanted = grad * (smoothing - 1.0);
        TchTensor::new(difference.scatter_add_(-1, &classes, &wanted))
    }

    #[cfg(feature = "flex")]
    fn adamw_update(
        parameter: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        moment_1: FloatTensor<Self>,
        moment_2: FloatTensor<Self>,
        step: AdamWStep,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>) {
        if !are_here([&parameter, &grad, &moment_1, &moment_2]) {
            return crate::adamw::composed::<Self>(parameter, grad, moment_1, moment_2, step);
        }
        let parameter = parameter.tensor.contiguous();
        let mut changed = [grad, moment_1, moment_2].map(owned);
        // SAFETY: the tensors have their values side by side, and the three that change are nobody else's.
        let (parameter, values) = unsafe {
            let values = changed
                .each_mut()
                .map(|tensor| floats_mut(&mut tensor.tensor));
            (floats(&parameter), values)
        };
        crate::flex::adamw::update_values(parameter, values, step);
        changed.into()
    }

    fn masked_attention_forward(
        query: FloatTensor<Self>,
        key: FloatTensor<Self>,
        value: FloatTensor<Self>,
        bias: ScoreBias<Self>,
        scoring: Scoring,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        // The fused kernel has no gradient for a bias, and no dropout.
        let is_fused = !matches!(bias, ScoreBias::Learned(_)) && scoring.dropout == 0.0;
        if !is_fused || query.tensor.device() != tch::Device::Cpu {
            return attention::composed_forward::<Self>(query, key, value, bias, scoring);
        }
        let masking = Masking::with_bias(bias, scoring.mask, &query, &key);
        let n_heads = query.tensor.size()[1];
        let (output, log_sum_exp) = Tensor::internal_scaled_dot_product_flash_attention_for_cpu(
            &with_rows(&query),
            &expand_groups(&with_rows(&key), n_heads),
            &expand_groups(&with_rows(&value), n_heads),
            0.0,
            masking.is_causal,
            masking.bias,
            Some(scoring.scale),
        );
        (TchTensor::new(output), TchTensor::new(log_sum_exp))
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
        if !is_flash(&saved) {
            return attention::composed_backward::<Self>(
                query, key, value, bias, saved, grad, scoring,
            );
        }
        let masking = Masking::with_bias(bias, scoring.mask, &query, &key);
        let [n_heads, n_kv_heads] = [query.tensor.size()[1], key.tensor.size()[1]];
        let (grad_query, grad_key, grad_value) =
            Tensor::internal_scaled_dot_product_flash_attention_for_cpu_backward(
                &with_rows(&grad),
                &with_rows(&query),
                &expand_groups(&with_rows(&key), n_heads),
                &expand_groups(&with_rows(&value), n_heads),
                &output.tensor,
                &saved.tensor,
                0.0,
                masking.is_causal,
                masking.bias,
                Some(scoring.scale),
            );
        (
            TchTensor::new(grad_query),
            TchTensor::new(sum_groups(grad_key, n_kv_heads)),
            TchTensor::new(sum_groups(grad_value, n_kv_heads)),
            saved,
        )
    }
}

/// Whether LibTorch can use Apple's GPU.
pub fn has_metal() -> bool {
    tch::utils::has_mps()
}
