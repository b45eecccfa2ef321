//! AdamW in one pass over a parameter, its gradient and its moments.
//!
//! Whoever trains holds the parameters until there are new ones, but seldom the gradients, so new parameters take the place of
//! their gradients. What somebody else holds is copied.

use burn_flex::FlexTensor;
use macerator::Simd;
use rayon::prelude::*;

use super::simd::{Kernel, chunk_length, contiguous, mul_add, owned, run};
use crate::AdamWStep;

/// Parameters, and their gradients, which become the parameters after the step.
struct Update<'a> {
    parameter: &'a [f32],
    grad: &'a mut [f32],
    moment_1: &'a mut [f32],
    moment_2: &'a mut [f32],
    step: AdamWStep,
}

impl Kernel for Update<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self) {
        let AdamWStep {
            learning_rate,
            beta1,
            beta2,
            epsilon,
            ..
        } = self.step;
        let [of_mean, of_square] = self.step.corrections();
        let (beta1, rest1) = (beta1 as f32, (1.0 - beta1) as f32);
        let (beta2, rest2) = (beta2 as f32, (1.0 - beta2) as f32);
        let (rate, square) = ((learning_rate / of_mean) as f32, (1.0 / of_square) as f32);
        let (epsilon, decay) = (epsilon as f32, self.step.decay() as f32);
        let moments = self.moment_1.iter_mut().zip(self.moment_2);
        let parameters = self.parameter.iter().zip(self.grad);
        for ((&parameter, grad), (moment_1, moment_2)) in parameters.zip(moments) {
            *moment_1 = mul_add::<S>(beta1, *moment_1, rest1 * *grad);
            *moment_2 = mul_add::<S>(beta2, *moment_2, rest2 * *grad * *grad);
            let update = rate * *moment_1 / ((*moment_2 * square).sqrt() + epsilon);
            *grad = mul_add::<S>(decay, parameter, -update);
        }
    }
}

/// The parameter and its moments after the step.
pub(super) fn update(
    parameter: FlexTensor,
    grad: FlexTensor,
    moment_1: FlexTensor,
    moment_2: FlexTensor,
    step: AdamWStep,
) -> (FlexTensor, FlexTensor, FlexTensor) {
    let parameter = contiguous(parameter);
    let mut changed = [grad, moment_1, moment_2].map(owned);
    let values = changed.each_mut().map(|tensor| tensor.storage_mut());
    update_values(&parameter, values, step);
    changed.into()
}

/// Makes of a gradient the new parameter, and changes the moments. All are as long as the parameter.
pub(crate) fn update_values(
    parameter: &[f32],
    [grad, moment_1, moment_2]: [&mut [f32]; 3],
    step: AdamWStep,
) {
    let length = chunk_length(grad.len(), 1);
    let chunks = parameter
        .par_chunks(length)
        .zip(grad.par_chunks_mut(length))
        .zip(moment_1.par_chunks_mut(length))
        .zip(moment_2.par_chunks_mut(length));
    chunks.for_each(|(((parameter, grad), moment_1), moment_2)| {
        run(Update {
            parameter,
            grad,
            moment_1,
            moment_2,
            step,
        });
    });
}
