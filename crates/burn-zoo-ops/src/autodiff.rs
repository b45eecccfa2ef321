//! Hand-written gradients, once for all backends.
//!
//! Composed from tracked operations, attention and normalisation would each record about ten steps
//! and keep every intermediate alive. Here each is one step that keeps what its gradient needs.

use burn::backend::{
    Autodiff, TensorMetadata,
    autodiff::{
        NodeId,
        checkpoint::{base::Checkpointer, strategy::CheckpointStrategy},
        grads::Gradients,
        ops::{Backward, NodeGuard, Ops, OpsKind},
    },
    tensor::{FloatTensor, IntTensor},
};

use crate::{
    Activation, Affine, ClassLoss, NormKind, Pairing, PreActivation, ScoreBias, Scoring,
    TransformerOps, rows,
};

/// Hands each parent that is tracked its gradient.
fn register<B: TransformerOps>(
    parents: impl IntoIterator<Item = Option<NodeId>>,
    grads: impl IntoIterator<Item = FloatTensor<B>>,
    store: &mut Gradients,
) {
    for (parent, grad) in parents.into_iter().zip(grads) {
        if let Some(id) = parent {
            store.register::<B>(id, grad);
        }
    }
}

#[derive(Debug)]
struct AttentionBackward;

impl<B: TransformerOps, const N: usize> Backward<B, N> for AttentionBackward {
    /// Query, key, value, output and what the forward pass saved; the bias; the scoring.
    type State = ([FloatTensor<B>; 5], ScoreBias<B>, Scoring);

    /// The parents are query, key, value and, where there is one, bias.
    fn backward(self, ops: Ops<Self::State, N>, grads: &mut Gradients, _: &mut Checkpointer) {
        let grad = grads.consume::<B>(&ops.node);
        let ([query, key, value, output, saved], bias, scoring) = ops.state;
        let parents = ops.parents.map(|parent| parent.map(|node| node.id));
        let (query, key, value, bias) =
            B::masked_attention_backward(query, key, value, bias, output, saved, grad, scoring);
        register::<B>(parents, [query, key, value, bias], grads);
    }
}

/// Attends, and records [`AttentionBackward`] when a gradient is wanted.
fn record_attention<B: TransformerOps, C: CheckpointStrategy, const N: usize>(
    nodes: [NodeGuard; N],
    [query, key, value]: [FloatTensor<B>; 3],
    bias: ScoreBias<B>,
    scoring: Scoring,
) -> FloatTensor<Autodiff<B, C>> {
    let prepared = Backward::<B, N>::prepare::<C>(AttentionBackward, nodes);
    match prepared.compute_bound().stateful() {
        OpsKind::Tracked(prep) => {
            let (output, saved) = B::masked_attention_forward(
                query.clone(),
                key.clone(),
                value.clone(),
                bias.clone(),
                scoring,
            );
            let tensors = [query, key, value, output.clone(), saved];
            prep.finish((tensors, bias, scoring), output)
        }
        OpsKind::UnTracked(prep) => {
            prep.finish(B::masked_attention(query, key, value, bias, scoring))
        }
    }
}

#[derive(Debug)]
struct LinearBackward;

impl<B: TransformerOps, const N: usize> Backward<B, N> for LinearBackward {
    /// The input, which the gradient of the weight needs, and the weight, which that of the input needs.
    type State = [Option<FloatTensor<B>>; 2];

    /// The parents are input, weight and, where there is one, bias.
    fn backward(self, ops: Ops<Self::State, N>, grads: &mut Gradients, _: &mut Checkpointer) {
        let grad = grads.consume::<B>(&ops.node);
        let parents = ops.parents.map(|parent| parent.map(|node| node.id));
        let [input, weight] = ops.state;
        if let (Some(id), Some(weight)) = (parents[0], weight) {
            let weight = Affine::Scale(B::float_transpose(weight));
            grads.register::<B>(id, B::affine_map(grad.clone(), weight));
        }
        if let (Some(id), Some(input)) = (parents[1], input) {
            grads.register::<B>(id, B::affine_map_weight_backward(input, grad.clone()));
        }
        if let Some(Some(id)) = parents.get(2) {
            grads.register::<B>(*id, B::affine_map_bias_backward(grad));
        }
    }
}

/// Multiplies, and records [`LinearBackward`] when a gradient is wanted.
fn record_linear<B: TransformerOps, C: CheckpointStrategy, const N: usize>(
    nodes: [NodeGuard; N],
    kept: [Option<FloatTensor<B>>; 2],
    input: FloatTensor<B>,
    affine: Affine<B>,
) -> FloatTensor<Autodiff<B, C>> {
    let prepared = Backward::<B, N>::prepare::<C>(LinearBackward, nodes);
    match prepared.compute_bound().stateful() {
        OpsKind::Tracked(prep) => prep.finish(kept, B::affine_map(input, affine)),
        OpsKind::UnTracked(prep) => prep.finish(B::affine_map(input, affine)),
    }
}

#[derive(Debug)]
struct ActivatedLinearBackward;

impl<B: TransformerOps, const N: usize> Backward<B, N> for ActivatedLinearBackward {
    /// What came before the activation, the activation, and the weight.
    type State = (PreActivation<B>, Activation, FloatTensor<B>);

    /// The parents are the weight, what came before the activation and, where there is one, the bias.
    fn backward(self, ops: Ops<Self::State, N>, grads: &mut Gradients, _: &mut Checkpointer) {
        let grad = grads.consume::<B>(&ops.node);
        let (input, activation, weight) = ops.state;
        let parents = ops.parents.map(|parent| parent.map(|node| node.id));
        if let Some(id) = parents[0] {
            let weight = B::activated_map_weight_backward(input.clone(), activation, grad.clone());
            grads.register::<B>(id, weight);
        }
        let n_inputs = match input {
            PreActivation::Plain(_) => 1,
            PreActivation::Gated(..) => 2,
        };
        let (inputs, bias) = parents[1..].split_at(n_inputs);
        if let Some(&Some(id)) = bias.first() {
            grads.register::<B>(id, B::affine_map_bias_backward(grad.clone()));
        }
        if inputs.iter().all(Option::is_none) {
            return;
        }
        let grad = B::affine_map(grad, Affine::Scale(B::float_transpose(weight)));
        let inputs = inputs.iter().copied();
        match input {
            PreActivation::Plain(input) => {
                let input = B::apply_activation_backward(input, grad, activation);
                register::<B>(inputs, [input], grads);
            }
            PreActivation::Gated(gate, up) => {
                let (gate, up) = B::gated_activation_backward(gate, up, grad, activation);
                register::<B>(inputs, [gate, up], grads);
            }
        }
    }
}

/// Activates and multiplies, and records [`ActivatedLinearBackward`] when a gradient is wanted.
fn record_activated<B: TransformerOps, C: CheckpointStrategy, const N: usize>(
    nodes: [NodeGuard; N],
    input: PreActivation<B>,
    activation: Activation,
    affine: Affine<B>,
) -> FloatTensor<Autodiff<B, C>> {
    let prepared = Backward::<B, N>::prepare::<C>(ActivatedLinearBackward, nodes);
    match prepared.compute_bound().stateful() {
        OpsKind::Tracked(prep) => {
            let (weight, _) = affine.clone().into_parts();
            let output = B::activated_map(input.clone(), activation, affine);
            prep.finish((input, activation, weight), output)
        }
        OpsKind::UnTracked(prep) => prep.finish(B::activated_map(input, activation, affine)),
    }
}

#[derive(Debug)]
struct ActivationBackward;

impl<B: TransformerOps> Backward<B, 1> for ActivationBackward {
    /// The input, and what was applied.
    type State = (FloatTensor<B>, Activation);

    fn backward(self, ops: Ops<Self::State, 1>, grads: &mut Gradients, _: &mut Checkpointer) {
        let grad = grads.consume::<B>(&ops.node);
        let (input, activation) = ops.state;
        let input = B::apply_activation_backward(input, grad, activation);
        let parents = ops.parents.map(|parent| parent.map(|node| node.id));
        register::<B>(parents, [input], grads);
    }
}

#[derive(Debug)]
struct DropoutBackward;

impl<B: TransformerOps> Backward<B, 1> for DropoutBackward {
    /// What the forward pass saved, and the probability.
    type State = (FloatTensor<B>, f64);

    fn backward(self, ops: Ops<Self::State, 1>, grads: &mut Gradients, _: &mut Checkpointer) {
        let grad = grads.consume::<B>(&ops.node);
        let (saved, probability) = ops.state;
        let input = B::random_dropout_backward(saved, grad, probability);
        let parents = ops.parents.map(|parent| parent.map(|node| node.id));
        register::<B>(parents, [input], grads);
    }
}

#[derive(Debug)]
struct ClassLossesBackward;

impl<B: TransformerOps> Backward<B, 1> for ClassLossesBackward {
    /// The logits and what the forward pass saved; the classes; the smoothing.
    type State = ([FloatTensor<B>; 2], IntTensor<B>, f64);

    fn backward(self, ops: Ops<Self::State, 1>, grads: &mut Gradients, _: &mut Checkpointer) {
        let grad = grads.consume::<B>(&ops.node);
        let ([logits, saved], classes, smoothing) = ops.state;
        let logits = B::class_losses_backward(logits, classes, saved, grad, smoothing);
        let parents = ops.parents.map(|parent| parent.map(|node| node.id));
        register::<B>(parents, [logits], grads);
    }
}

#[derive(Debug)]
struct ProjectionLossBackward;

impl<B: TransformerOps, const N: usize> Backward<B, N> for ProjectionLossBackward {
    /// The gradients of input, weight and bias.
    type State = [FloatTensor<B>; 3];

    /// The parents are input, weight and, where there is one, bias.
    fn backward(self, ops: Ops<Self::State, N>, grads: &mut Gradients, _: &mut Checkpointer) {
        let grad = grads.consume::<B>(&ops.node);
        let parents = ops.parents.map(|parent| parent.map(|node| node.id));
        for (parent, gradient) in parents.into_iter().zip(ops.state) {
            if let Some(id) = parent {
                let gradient = B::scaled(gradient, grad.clone());
                grads.register::<B>(id, gradient);
            }
        }
    }
}

/// Computes the loss, and with it what [`ProjectionLossBackward`] hands out when a gradient is wanted.
fn record_projection_loss<B: TransformerOps, C: CheckpointStrategy, const N: usize>(
    nodes: [NodeGuard; N],
    input: FloatTensor<B>,
    affine: Affine<B>,
    classes: IntTensor<B>,
    loss: ClassLoss,
    learned: bool,
) -> FloatTensor<Autodiff<B, C>> {
    let prepared = Backward::<B, N>::prepare::<C>(ProjectionLossBackward, nodes);
    match prepared.compute_bound().stateful() {
        OpsKind::Tracked(prep) => {
            let (total, input, weight, bias) =
                B::class_projection_loss_forward(input, affine, classes, loss, learned);
            prep.finish([input, weight, bias], total)
        }
        OpsKind::UnTracked(prep) => {
            prep.finish(B::class_projection_loss(input, affine, classes, loss))
        }
    }
}

#[derive(Debug)]
struct NormBackward;

impl<B: TransformerOps, const N: usize> Backward<B, N> for NormBackward {
    /// The normalised input, the reciprocal standard deviation, the weight, and the kind.
    type State = ([FloatTensor<B>; 3], NormKind);

    /// The parents are input, weight and, where there is one, bias.
    fn backward(self, ops: Ops<Self::State, N>, grads: &mut Gradients, _: &mut Checkpointer) {
        let grad = grads.consume::<B>(&ops.node);
        let ([normalized, reciprocal_std, weight], kind) = ops.state;
        let (input, weight, bias) =
            B::affine_normalize_backward(normalized, reciprocal_std, weight, grad, kind);
        let parents = ops.parents.map(|parent| parent.map(|node| node.id));
        register::<B>(parents, [input, weight, bias], grads);
    }
}

#[derive(Debug)]
struct GatedBackward;

impl<B: TransformerOps> Backward<B, 2> for GatedBackward {
    /// Gate and up, and the activation.
    type State = ([FloatTensor<B>; 2], Activation);

    fn backward(self, ops: Ops<Self::State, 2>, grads: &mut Gradients, _: &mut Checkpointer) {
        let grad = grads.consume::<B>(&ops.node);
        let ([gate, up], activation) = ops.state;
        let (gate, up) = B::gated_activation_backward(gate, up, grad, activation);
        let parents = ops.parents.map(|parent| parent.map(|node| node.id));
        register::<B>(parents, [gate, up], grads);
    }
}

#[derive(Debug)]
struct RotaryBackward;

impl<B: TransformerOps> Backward<B, 1> for RotaryBackward {
    /// Cosines and sines, and which channels are pairs.
    type State = ([FloatTensor<B>; 2], Pairing);

    fn backward(self, ops: Ops<Self::State, 1>, grads: &mut Gradients, _: &mut Checkpointer) {
        let grad = grads.consume::<B>(&ops.node);
        let ([cos, sin], pairing) = ops.state;
        let input = B::rotate_pairs(grad, cos, B::float_neg(sin), pairing);
        let parents = ops.parents.map(|parent| parent.map(|node| node.id));
        register::<B>(parents, [input], grads);
    }
}

#[derive(Debug)]
struct RowGatherBackward;

impl<B: TransformerOps> Backward<B, 1> for RowGatherBackward {
    /// The table, whose gradient may be begun, and the rows that were taken.
    type State = (FloatTensor<Autodiff<B>>, IntTensor<B>);

    fn backward(self, ops: Ops<Self::State, 1>, grads: &mut Gradients, _: &mut Checkpointer) {
        let grad = grads.consume::<B>(&ops.node);
        let (table, indices) = ops.state;
        let total = grads.remove::<B>(&table);
        let total = total.unwrap_or_else(|| rows::zeros::<B>(&grad, table.shape()[0]));
        let total = B::row_gather_backward(total, indices, grad);
        let parents = ops.parents.map(|parent| parent.map(|node| node.id));
        register::<B>(parents, [total], grads);
    }
}

#[derive(Debug)]
struct RowAddBackward;

impl<B: TransformerOps> Backward<B, 3> for RowAddBackward {
    /// Rows and weights, and where they were added.
    type State = ([FloatTensor<B>; 2], IntTensor<B>);

    /// The parents are total, rows and weights.
    fn backward(self, ops: Ops<Self::State, 3>, grads: &mut Gradients, _: &mut Checkpointer) {
        let grad = grads.consume::<B>(&ops.node);
        let ([rows, weights], indices) = ops.state;
        let (rows, weights) = B::weighted_row_add_backward(rows, weights, indices, grad.clone());
        let parents = ops.parents.map(|parent| parent.map(|node| node.id));
        register::<B>(parents, [grad, rows, weights], grads);
    }
}

#[derive(Debug)]
struct SumBackward;

impl<B: TransformerOps> Backward<B, 2> for SumBackward {
    type State = ();

    fn backward(self, ops: Ops<Self::State, 2>, grads: &mut Gradients, _: &mut Checkpointer) {
        let grad = grads.consume::<B>(&ops.node);
        let parents = ops.parents.map(|parent| parent.map(|node| node.id));
        register::<B>(parents, [grad.clone(), grad], grads);
    }
}

impl<B: TransformerOps, C: CheckpointStrategy> TransformerOps for Autodiff<B, C> {
    fn gated_activation(
        gate: FloatTensor<Self>,
        up: FloatTensor<Self>,
        activation: Activation,
    ) -> FloatTensor<Self> {
        let ((gate, g), (up, u)) = (gate.into_parts(), up.into_parts());
        let prepared = GatedBackward.prepare::<C>([g, u]);
        match prepared.compute_bound().stateful() {
            OpsKind::Tracked(prep) => {
                let output = B::gated_activation(gate.clone(), up.clone(), activation);
                prep.finish(([gate, up], activation), output)
            }
            OpsKind::UnTracked(prep) => prep.finish(B::gated_activation(gate, up, activation)),
        }
    }

    /// Cosines and sines are not learned.
    fn rotate_pairs(
        input: FloatTensor<Self>,
        cos: FloatTensor<Self>,
        sin: FloatTensor<Self>,
        pairing: Pairing,
    ) -> FloatTensor<Self> {
        let (input, node) = input.into_parts();
        let [cos, sin] = [cos, sin].map(|table| table.into_primitive());
        let prepared = RotaryBackward.prepare::<C>([node]);
        match prepared.compute_bound().stateful() {
            OpsKind::Tracked(prep) => {
                let output = B::rotate_pairs(input, cos.clone(), sin.clone(), pairing);
                prep.finish(([cos, sin], pairing), output)
            }
            OpsKind::UnTracked(prep) => prep.finish(B::rotate_pairs(input, cos, sin, pairing)),
        }
    }

    fn row_gather(table: FloatTensor<Self>, indices: IntTensor<Self>) -> FloatTensor<Self> {
        let rows = B::row_gather(table.primitive().clone(), indices.clone());
        let prepared = RowGatherBackward.prepare::<C>([table.node()]);
        match prepared.compute_bound().stateful() {
            OpsKind::Tracked(prep) => prep.finish((table, indices), rows),
            OpsKind::UnTracked(prep) => prep.finish(rows),
        }
    }

    fn weighted_row_add(
        total: FloatTensor<Self>,
        rows: FloatTensor<Self>,
        weights: FloatTensor<Self>,
        indices: IntTensor<Self>,
    ) -> FloatTensor<Self> {
        let ((total, t), (rows, r), (weights, w)) =
            (total.into_parts(), rows.into_parts(), weights.into_parts());
        let prepared = RowAddBackward.prepare::<C>([t, r, w]);
        match prepared.compute_bound().stateful() {
            OpsKind::Tracked(prep) => {
                let kept = ([rows.clone(), weights.clone()], indices.clone());
                prep.finish(kept, B::weighted_row_add(total, rows, weights, indices))
            }
            OpsKind::UnTracked(prep) => {
                prep.finish(B::weighted_row_add(total, rows, weights, indices))
            }
        }
    }

    /// Two steps on the tape, whose values are made in one.
    fn add_normalize(
        input: FloatTensor<Self>,
        added: FloatTensor<Self>,
        affine: Affine<Self>,
        kind: NormKind,
        epsilon: f64,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        let (weight, bias) = affine.into_parts();
        let ((input, i), (added, a), (weight, w)) =
            (input.into_parts(), added.into_parts(), weight.into_parts());
        let (bias, b) = bias.map(|bias| bias.into_parts()).unzip();
        let affine = Affine::new(weight.clone(), bias);
        let (sum, output, normalized, reciprocal_std) =
            B::add_normalize_forward(input, added, affine, kind, epsilon);
        let prepared = SumBackward.prepare::<C>([i, a]);
        let sum = match prepared.compute_bound().stateful() {
            OpsKind::Tracked(prep) => prep.finish((), sum),
            OpsKind::UnTracked(prep) => prep.finish(sum),
        };
        let made = (output, [normalized, reciprocal_std, weight]);
        let output = match b {
            None => finish_norm::<B, C, 2>([sum.node(), w], made, kind),
            Some(b) => finish_norm::<B, C, 3>([sum.node(), w, b], made, kind),
        };
        (sum, output)
    }

    fn masked_attention(
        query: FloatTensor<Self>,
        key: FloatTensor<Self>,
        value: FloatTensor<Self>,
        bias: ScoreBias<Self>,
        scoring: Scoring,
    ) -> FloatTensor<Self> {
        let ((query, q), (key, k), (value, v)) =
            (query.into_parts(), key.into_parts(), value.into_parts());
        let tensors = [query, key, value];
        match bias.tensor() {
            None => record_attention::<B, C, 3>([q, k, v], tensors, ScoreBias::None, scoring),
            Some(bias) => {
                // A mask is a bias that nothing learns.
                let is_learned = bias.is_tracked();
                let (bias, b) = bias.into_parts();
                let bias = match is_learned {
                    true => ScoreBias::Learned(bias),
                    false => ScoreBias::Added(bias),
                };
                record_attention::<B, C, 4>([q, k, v, b], tensors, bias, scoring)
            }
        }
    }

    fn affine_map(input: FloatTensor<Self>, affine: Affine<Self>) -> FloatTensor<Self> {
        let is_input_tracked = input.is_tracked();
        let (weight, bias) = affine.into_parts();
        let is_weight_tracked = weight.is_tracked();
        let ((input, i), (weight, w)) = (input.into_parts(), weight.into_parts());
        let kept = [
            is_weight_tracked.then(|| input.clone()),
            is_input_tracked.then(|| weight.clone()),
        ];
        match bias {
            None => record_linear::<B, C, 2>([i, w], kept, input, Affine::Scale(weight)),
            Some(bias) => {
                let (bias, b) = bias.into_parts();
                let affine = Affine::ScaleShift(weight, bias);
                record_linear::<B, C, 3>([i, w, b], kept, input, affine)
            }
        }
    }

    fn activated_map(
        input: PreActivation<Self>,
        activation: Activation,
        affine: Affine<Self>,
    ) -> FloatTensor<Self> {
        let (weight, bias) = affine.into_parts();
        let (weight, w) = weight.into_parts();
        let (bias, b) = bias.map(|bias| bias.into_parts()).unzip();
        let affine = Affine::new(weight, bias);
        match input {
            PreActivation::Plain(input) => {
                let (input, i) = input.into_parts();
                let input = PreActivation::Plain(input);
                match b {
                    None => record_activated::<B, C, 2>([w, i], input, activation, affine),
                    Some(b) => record_activated::<B, C, 3>([w, i, b], input, activation, affine),
                }
            }
            PreActivation::Gated(gate, up) => {
                let ((gate, g), (up, u)) = (gate.into_parts(), up.into_parts());
                let input = PreActivation::Gated(gate, up);
                match b {
                    None => record_activated::<B, C, 3>([w, g, u], input, activation, affine),
                    Some(b) => record_activated::<B, C, 4>([w, g, u, b], input, activation, affine),
                }
            }
        }
    }

    fn apply_activation(input: FloatTensor<Self>, activation: Activation) -> FloatTensor<Self> {
        let (input, node) = input.into_parts();
        let prepared = ActivationBackward.prepare::<C>([node]);
        match prepared.compute_bound().stateful() {
            OpsKind::Tracked(prep) => {
                let output = B::apply_activation(input.clone(), activation);
                prep.finish((input, activation), output)
            }
            OpsKind::UnTracked(prep) => prep.finish(B::apply_activation(input, activation)),
        }
    }

    fn random_dropout(input: FloatTensor<Self>, probability: f64) -> FloatTensor<Self> {
        let (input, node) = input.into_parts();
        match DropoutBackward
            .prepare::<C>([node])
            .compute_bound()
            .stateful()
        {
            OpsKind::Tracked(prep) => {
                let (output, saved) = B::random_dropout_forward(input, probability);
                prep.finish((saved, probability), output)
            }
            OpsKind::UnTracked(prep) => prep.finish(B::random_dropout(input, probability)),
        }
    }

    fn class_losses(
        logits: FloatTensor<Self>,
        classes: IntTensor<Self>,
        smoothing: f64,
    ) -> FloatTensor<Self> {
        let (logits, node) = logits.into_parts();
        let prepared = ClassLossesBackward.prepare::<C>([node]);
        match prepared.compute_bound().stateful() {
            OpsKind::Tracked(prep) => {
                let (losses, saved) =
                    B::class_losses_forward(logits.clone(), classes.clone(), smoothing);
                prep.finish(([logits, saved], classes, smoothing), losses)
            }
            OpsKind::UnTracked(prep) => prep.finish(B::class_losses(logits, classes, smoothing)),
        }
    }

    fn class_projection_loss(
        input: FloatTensor<Self>,
        affine: Affine<Self>,
        classes: IntTensor<Self>,
        loss: ClassLoss,
    ) -> FloatTensor<Self> {
        let (weight, bias) = affine.into_parts();
        let learned = weight.is_tracked() || bias.as_ref().is_some_and(|bias| bias.is_tracked());
        let ((input, i), (weight, w)) = (input.into_parts(), weight.into_parts());
        match bias {
            None => {
                let affine = Affine::Scale(weight);
                record_projection_loss::<B, C, 2>([i, w], input, affine, classes, loss, learned)
            }
            Some(bias) => {
                let (bias, b) = bias.into_parts();
                let affine = Affine::ScaleShift(weight, bias);
                record_projection_loss::<B, C, 3>([i, w, b], input, affine, classes, loss, learned)
            }
        }
    }

    fn affine_normalize(
        input: FloatTensor<Self>,
        affine: Affine<Self>,
        kind: NormKind,
        epsilon: f64,
    ) -> FloatTensor<Self> {
        let (input, input_node) = input.into_parts();
        match affine {
            Affine::Scale(weight) => {
                let (weight, weight_node) = weight.into_parts();
                let affine = Affine::Scale(weight.clone());
                let nodes = [input_node, weight_node];
                record_norm::<B, C, 2>(nodes, input, weight, affine, kind, epsilon)
            }
            Affine::ScaleShift(weight, bias) => {
                let ((weight, weight_node), (bias, bias_node)) =
                    (weight.into_parts(), bias.into_parts());
                let affine = Affine::ScaleShift(weight.clone(), bias);
                let nodes = [input_node, weight_node, bias_node];
                record_norm::<B, C, 3>(nodes, input, weight, affine, kind, epsilon)
            }
        }
    }
}

/// Records [`NormBackward`] for a normalisation that was made, with what it keeps.
fn finish_norm<B: TransformerOps, C: CheckpointStrategy, const N: usize>(
    nodes: [NodeGuard; N],
    (output, kept): (FloatTensor<B>, [FloatTensor<B>; 3]),
    kind: NormKind,
) -> FloatTensor<Autodiff<B, C>> {
    let prepared = Backward::<B, N>::prepare::<C>(NormBackward, nodes);
    match prepared.compute_bound().stateful() {
        OpsKind::Tracked(prep) => prep.finish((kept, kind), output),
        OpsKind::UnTracked(prep) => prep.finish(output),
    }
}

/// Normalises, and records [`NormBackward`] when a gradient is wanted.
fn record_norm<B: TransformerOps, C: CheckpointStrategy, const N: usize>(
    nodes: [NodeGuard; N],
    input: FloatTensor<B>,
    weight: FloatTensor<B>,
    affine: Affine<B>,
    kind: NormKind,
    epsilon: f64,
) -> FloatTensor<Autodiff<B, C>> {
    let prepared = Backward::<B, N>::prepare::<C>(NormBackward, nodes);
    match prepared.compute_bound().stateful() {
        OpsKind::Tracked(prep) => {
            let (output, normalized, reciprocal_std) =
                B::affine_normalize_forward(input, affine, kind, epsilon);
            prep.finish(([normalized, reciprocal_std, weight], kind), output)
        }
        OpsKind::UnTracked(prep) => prep.finish(B::affine_normalize(input, affine, kind, epsilon)),
    }
}
