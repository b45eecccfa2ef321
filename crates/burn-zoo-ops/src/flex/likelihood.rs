//! The negative log-likelihood of classes: one pass over the logits each way, the second in their place.

use burn::tensor::Shape;
use burn_flex::FlexTensor;
use macerator::Simd;
use rayon::prelude::*;

use crate::ClassLoss;

use super::simd::{Kernel, chunk_length, contiguous, exp, largest, run, sum, tensor, update};

/// Rows of logits, their losses, and the two parts of their log-sum-exp: the largest logit and the rest.
struct Forward<'a> {
    logits: &'a [f32],
    classes: &'a [usize],
    losses: &'a mut [f32],
    log_sum_exp: &'a mut [f32],
    smoothing: f32,
}

impl Kernel for Forward<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self) {
        let width = self.logits.len() / self.classes.len();
        let results = self
            .losses
            .iter_mut()
            .zip(self.log_sum_exp.chunks_exact_mut(2));
        let rows = self.logits.chunks_exact(width).zip(self.classes);
        for ((row, &class), (loss, log_sum_exp)) in rows.zip(results) {
            let max = largest(row);
            let [total] = sum::<1>(row, row, |x, _| [exp::<S>(x - max)]);
            // Apart, because their sum would lose the digits of a small loss.
            log_sum_exp.copy_from_slice(&[max, total.ln()]);
            let mut expected = row[class] - max;
            if self.smoothing > 0.0 {
                let [all] = sum::<1>(row, row, |x, _| [x - max]);
                expected += self.smoothing * (all / width as f32 - expected);
            }
            *loss = total.ln() - expected;
        }
    }
}

/// The losses `[rows]`, and the parts of the log-sum-exp of each row `[rows, 2]`.
pub(super) fn forward(
    logits: FlexTensor,
    classes: &[usize],
    smoothing: f64,
) -> (FlexTensor, FlexTensor) {
    let [rows, width] = logits.layout().shape().dims();
    let logits = contiguous(logits);
    let (mut losses, mut log_sum_exp) = (vec![0.0; rows], vec![0.0; 2 * rows]);
    let length = chunk_length(logits.len(), width);
    let of_rows = length / width.max(1);
    let chunks = logits
        .par_chunks(length)
        .zip(classes.par_chunks(of_rows))
        .zip(losses.par_chunks_mut(of_rows))
        .zip(log_sum_exp.par_chunks_mut(2 * of_rows));
    chunks.for_each(|(((logits, classes), losses), log_sum_exp)| {
        run(Forward {
            logits,
            classes,
            losses,
            log_sum_exp,
            smoothing: smoothing as f32,
        });
    });
    (
        tensor(losses, Shape::new([rows])),
        tensor(log_sum_exp, Shape::new([rows, 2])),
    )
}

/// Rows of logits, which become their gradients, and their losses.
struct Both<'a> {
    logits: &'a mut [f32],
    classes: &'a [usize],
    losses: &'a mut [f32],
    loss: ClassLoss,
}

impl Kernel for Both<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self) {
        let width = self.logits.len() / self.classes.len();
        let (smoothing, scale) = (self.loss.smoothing as f32, self.loss.scale as f32);
        let rows = self.logits.chunks_exact_mut(width).zip(self.classes);
        for ((row, &class), loss) in rows.zip(self.losses) {
            let max = largest(row);
            let mut expected = row[class] - max;
            if smoothing > 0.0 {
                let [all] = sum::<1>(row, row, |x, _| [x - max]);
                expected += smoothing * (all / width as f32 - expected);
            }
            for x in row.iter_mut() {
                *x = exp::<S>(*x - max);
            }
            let [total] = sum::<1>(row, row, |x, _| [x]);
            *loss = total.ln() - expected;
            let (share, of_all) = (scale / total, scale * smoothing / width as f32);
            for x in row.iter_mut() {
                *x = *x * share - of_all;
            }
            row[class] -= (1.0 - smoothing) * scale;
        }
    }
}

/// Makes the losses of rows of logits, and of the logits their gradients.
pub(super) fn losses_and_gradients(
    logits: &mut [f32],
    classes: &[usize],
    losses: &mut [f32],
    loss: ClassLoss,
) {
    let width = logits.len() / classes.len();
    let length = chunk_length(logits.len(), width);
    let of_rows = length / width.max(1);
    let rows = logits
        .par_chunks_mut(length)
        .zip(classes.par_chunks(of_rows));
    let rows = rows.zip(losses.par_chunks_mut(of_rows));
    rows.for_each(|((logits, classes), losses)| {
        run(Both {
            logits,
            classes,
            losses,
            loss,
        });
    });
}

/// Rows of logits, which become their gradients.
struct Backward<'a> {
    logits: &'a mut [f32],
    classes: &'a [usize],
    log_sum_exp: &'a [f32],
    grad: &'a [f32],
    smoothing: f32,
}

impl Kernel for Backward<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self) {
        let width = self.logits.len() / self.classes.len();
        let rows = self.logits.chunks_exact_mut(width).zip(self.classes);
        let rows = rows.zip(self.log_sum_exp.chunks_exact(2).zip(self.grad));
        for ((row, &class), (log_sum_exp, &grad)) in rows {
            // Nothing is asked of it.
            if grad == 0.0 {
                row.fill(0.0);
                continue;
            }
            let (max, rest) = (log_sum_exp[0], log_sum_exp[1]);
            let of_all = self.smoothing / width as f32;
            for x in row.iter_mut() {
                *x = (exp::<S>(*x - max - rest) - of_all) * grad;
            }
            row[class] -= (1.0 - self.smoothing) * grad;
        }
    }
}

/// The gradient of the logits.
pub(super) fn backward(
    logits: FlexTensor,
    classes: &[usize],
    log_sum_exp: FlexTensor,
    grad: FlexTensor,
    smoothing: f64,
) -> FlexTensor {
    let [_, width] = logits.layout().shape().dims();
    let grad = contiguous(grad);
    let log_sum_exp = log_sum_exp.storage::<f32>();
    let length = chunk_length(logits.layout().num_elements(), width);
    update(logits, length, |first, logits| {
        let rows = first / width..(first + logits.len()) / width;
        run(Backward {
            classes: &classes[rows.clone()],
            log_sum_exp: &log_sum_exp[2 * rows.start..2 * rows.end],
            grad: &grad[rows],
            logits,
            smoothing: smoothing as f32,
        });
    })
}
