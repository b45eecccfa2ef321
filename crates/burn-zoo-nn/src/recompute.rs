//! Computing what blocks hold again in the backward pass instead of keeping it (Chen et al. 2016, arXiv:1604.06174).
//!
//! While [`record`] runs, a [`Stack`](crate::stack::Stack) keeps of each block its input alone.
//! [`Tape::gradients`] then goes from the last block to the first, and each is computed once more, with a graph, until
//! its gradients are there: memory for one block in place of all, for one more forward pass.
//!
//! ```
//! use burn::tensor::{Device, Int, Tensor};
//! use burn_zoo_nn::{LanguageModel, TransformerConfig, block::BlockConfig, recompute};
//!
//! let device = Device::flex().autodiff();
//! let blocks = vec![BlockConfig::gpt2(32, 4), BlockConfig::gpt2(32, 2)];
//! let model = TransformerConfig::new(100, 32, 16, blocks).init(&device);
//! let tokens = Tensor::<2, Int>::zeros([1, 8], &device);
//! let (loss, tape) = recompute::record(|| model.forward(tokens).square().mean());
//! let grads = tape.gradients(loss, &model);
//! let token = &model.embedding.token;
//! assert_eq!(grads.get::<2>(token.id).unwrap().dims(), [100, 32]);
//! ```

use std::cell::RefCell;

use burn::module::{Module, ModuleVisitor, Param};
use burn::optim::{GradientsAccumulator, GradientsParams};
use burn::tensor::{DType, Gradients, Tensor};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::{block::Block, pass::Pass};

thread_local! {
    static TAPE: RefCell<Option<Tape>> = const { RefCell::new(None) };
    static SEEDS: RefCell<ChaCha8Rng> = RefCell::new(ChaCha8Rng::seed_from_u64(0));
}

/// Decides what the blocks of this thread's next recordings draw for dropout, beside the generator of the device.
pub fn seed(seed: u64) {
    SEEDS.set(ChaCha8Rng::seed_from_u64(seed));
}

/// Runs `forward`, in which stacks keep inputs alone, and returns the tape that its gradients need. Both belong to the
/// thread.
///
/// A loss that is computed in it has whole gradients by [`Tape::gradients`] alone: what a stack has read, such as
/// embeddings or an encoder's output, is cut off from what comes after it, and cannot be used beside the stack. Blocks
/// with dropout seed the generator of the device, now and when they are computed again: nothing else may draw from it
/// meanwhile.
pub fn record<T>(forward: impl FnOnce() -> T) -> (T, Tape) {
    struct Restore(Option<Tape>);
    impl Drop for Restore {
        fn drop(&mut self) {
            TAPE.set(self.0.take());
        }
    }
    let _restore = Restore(TAPE.replace(Some(Tape::default())));
    let result = forward();
    (result, TAPE.take().unwrap_or_default())
}

fn is_recording() -> bool {
    TAPE.with_borrow(Option::is_some)
}

/// What a forward pass left out, in its order. The default is that of a pass that left out nothing.
#[derive(Default)]
pub struct Tape {
    parts: Vec<Part>,
}

/// A piece of the graph that the rest is cut off from.
struct Part {
    /// What the rest reads in place of its outputs.
    leaves: Vec<Box<dyn AnyLeaf>>,
    /// The outputs with their graph, flat, in the same order.
    outputs: Box<dyn FnOnce() -> Vec<Tensor<1>>>,
}

/// A tensor without a past, and its gradient as far as it is known.
struct Leaf<const D: usize> {
    tensor: Tensor<D>,
    grad: Option<Tensor<D>>,
}

trait AnyLeaf {
    /// Takes what a backward pass found.
    fn collect(&mut self, grads: &mut Gradients);
    /// The sum of it, flat.
    fn grad(self: Box<Self>) -> Option<Tensor<1>>;
}

impl<const D: usize> AnyLeaf for Leaf<D> {
    fn collect(&mut self, grads: &mut Gradients) {
        if let Some(new) = self.tensor.grad_remove(grads) {
            self.grad = Some(match self.grad.take() {
                Some(grad) => grad + new,
                None => new,
            });
        }
    }

    fn grad(self: Box<Self>) -> Option<Tensor<1>> {
        self.grad.map(flat)
    }
}

fn flat<const D: usize>(tensor: Tensor<D>) -> Tensor<1> {
    tensor.reshape([-1])
}

impl Part {
    /// What has the gradients of the part's own inputs and parameters, `[1]`: outputs times their gradients. None when
    /// the loss does not depend on it.
    fn loss(self) -> Option<Tensor<1>> {
        let grads: Vec<_> = self.leaves.into_iter().map(AnyLeaf::grad).collect();
        if grads.iter().all(Option::is_none) {
            return None;
        }
        let products = (self.outputs)().into_iter().zip(grads);
        // The losses of routers are in 32 bits where the rest is in 16.
        let products =
            products.filter_map(|(output, grad)| Some((output * grad?).sum().cast(DType::F32)));
        let sum = products.reduce(|sum, product| sum + product);
        sum.filter(Tensor::is_tracked)
    }
}

impl Tape {
    /// How many pieces of the graph were left out: each block, and what blocks read besides.
    pub fn n_parts(&self) -> usize {
        self.parts.len()
    }

    /// The gradients of `loss` `[1]`, computed in the recording, for the parameters of `module`.
    ///
    /// # Panics
    ///
    /// When `loss` does not depend on any of them, or on what a stack has read in another way than through the stack.
    pub fn gradients<M: Module>(mut self, loss: Tensor<1>, module: &M) -> GradientsParams {
        let mut sum = GradientsAccumulator::new();
        let mut backward = |loss: Tensor<1>, earlier: &mut [Part]| {
            let mut grads = loss.backward();
            let leaves = earlier.iter_mut().flat_map(|part| &mut part.leaves);
            leaves.for_each(|leaf| leaf.collect(&mut grads));
            sum.accumulate(module, GradientsParams::from_module(&mut grads, module));
        };
        backward(loss, &mut self.parts);
        // All that reads a part comes after it.
        while let Some(part) = self.parts.pop() {
            if let Some(loss) = part.loss() {
                backward(loss, &mut self.parts);
            }
        }
        sum.grads()
    }
}

/// Adds a part to the tape.
fn push(leaves: Vec<Box<dyn AnyLeaf>>, outputs: impl FnOnce() -> Vec<Tensor<1>> + 'static) {
    let outputs = Box::new(outputs);
    TAPE.with_borrow_mut(|tape| {
        let tape = tape.as_mut().expect("there is a recording");
        tape.parts.push(Part { leaves, outputs });
    });
}

/// In a recording, a leaf in place of `tensor`, which several blocks may read.
pub(crate) fn cut<const D: usize>(tensor: Tensor<D>) -> Tensor<D> {
    if !is_recording() || !tensor.is_tracked() || tensor.is_require_grad() {
        return tensor;
    }
    let (leaf, kept) = leaf(constant(tensor.clone()));
    push(vec![kept], move || vec![flat(tensor)]);
    leaf
}

/// A leaf for the rest of the graph, and what collects its gradient.
fn leaf<const D: usize>(tensor: Tensor<D>) -> (Tensor<D>, Box<dyn AnyLeaf>) {
    let tensor = tensor.require_grad();
    let leaf = Leaf {
        tensor: tensor.clone(),
        grad: None,
    };
    (tensor, Box::new(leaf))
}

/// A tensor without its graph.
pub(crate) fn constant<const D: usize>(tensor: Tensor<D>) -> Tensor<D> {
    tensor.set_require_grad(false)
}

/// `block.forward`, of which a recording keeps nothing but the input.
pub(crate) fn forward(block: &Block, x: Tensor<3>, pass: &mut Pass) -> Tensor<3> {
    let has_gradient = || learns(block) || x.is_tracked() || pass.is_tracked();
    if !is_recording() || pass.attention_maps.is_some() || !has_gradient() {
        return block.forward(x, pass, None);
    }
    let mut plain_block = block.clone().no_grad();
    // Dropout draws from the generator of the device, which cannot be asked where it stands.
    let draw = || SEEDS.with_borrow_mut(ChaCha8Rng::next_u64);
    let seed = plain_block.has_dropout().then(draw);
    let device = x.device();
    let reseed = move || {
        seed.into_iter()
            .for_each(|seed| burn_zoo_ops::seed(&device, seed))
    };

    reseed();
    let mut plain = pass.without_graph();
    let output = plain_block.forward(constant(x.clone()), &mut plain, None);
    (pass.biases, pass.tables) = (plain.biases, plain.tables);
    let (output, kept) = leaf(output);
    let mut leaves = vec![kept];
    for mut routing in plain.routing {
        for loss in [&mut routing.balance_loss, &mut routing.z_loss] {
            let (new, kept) = leaf(loss.clone());
            *loss = new;
            leaves.push(kept);
        }
        pass.routing.push(routing);
    }

    let (block, mut pass) = (block.clone(), pass.for_replay());
    push(leaves, move || {
        reseed();
        let output = block.forward(x, &mut pass, None);
        let losses = pass.routing.into_iter();
        let losses = losses.flat_map(|routing| [routing.balance_loss, routing.z_loss]);
        std::iter::once(flat(output)).chain(losses).collect()
    });
    output
}

/// Whether any parameter needs a gradient.
fn learns(block: &Block) -> bool {
    struct Learns(bool);
    impl ModuleVisitor for Learns {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            self.0 |= param.val().is_tracked();
        }
    }
    let mut learns = Learns(false);
    block.visit(&mut learns);
    learns.0
}
