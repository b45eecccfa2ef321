//! AdamW in one pass over a parameter, its gradient and its moments, in place where nobody else holds them.

use burn_flex::FlexTensor;
use macerator::Simd;
use rayon::prelude::*;

use super::simd::{Kernel, chunk_length, contiguous, mul_add, owned, run};
use crate::AdamWStep;

struct Update<'a> {
    parameter: &'a mut [f32],
    grad: &'a [f32],
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
        let parameters = self.parameter.iter_mut().zip(self.grad);
        for ((parameter, &grad), (moment_1, moment_2)) in parameters.zip(moments) {
            *moment_1 = mul_add::<S>(beta1, *moment_1, rest1 * grad);
            *moment_2 = mul_add::<S>(beta2, *moment_2, rest2 * grad * grad);
            let update = rate * *moment_1 / ((*moment_2 * square).sqrt() + epsilon);
            *parameter = mul_add::<S>(decay, *parameter, -update);
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
    let [mut parameter, mut moment_1, mut moment_2] = [parameter, moment_1, moment_2].map(owned);
    let (grad, range) = contiguous(grad);
    let grad = &grad.storage::<f32>()[range];
    update_values(
        [
            parameter.storage_mut::<f32>(),
            moment_1.storage_mut::<f32>(),
            moment_2.storage_mut::<f32>(),
        ],
        grad,
        step,
    );
    (parameter, moment_1, moment_2)
}

/// Changes a parameter and its moments, which are as long as its gradient.
pub(crate) fn update_values(
    [parameter, moment_1, moment_2]: [&mut [f32]; 3],
    grad: &[f32],
    step: AdamWStep,
) {
    let length = chunk_length(grad.len(), 1);
    let chunks = parameter
        .par_chunks_mut(length)
        .zip(grad.par_chunks(length))
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
