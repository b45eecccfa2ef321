//! Guesses of what a model will write, by a copy of itself that is sooner done (self-speculative decoding: Zhang et al. 2023,
//! arXiv:2309.08168; drafts by a quantised copy).

use burn::module::Module;
use burn_zoo_nn::Transformer;

/// Blocks of fewer parameters take as long to call as to read.
const LARGE: usize = 1 << 25;

/// How long the draft of a token takes, as a share of a pass of the model over one token: GPT-2 124M on two cores of an Intel Xeon.
const DRAFTING: f64 = 0.4;

/// How much longer a pass takes for each draft that it reads besides, there.
const READING: f64 = 0.14;

/// Drafts at a time. A pass over more tokens no longer takes about as long as over one.
const MOST: usize = 7;

/// How much the last draft tells of the next.
const RECENT: f64 = 0.1;

/// A copy that drafts, and how often it is right.
pub(crate) struct Drafter {
    /// Matches the model in all but rounding.
    pub(crate) model: Transformer,
    /// The share of drafts that were right lately.
    right: f64,
}

impl Drafter {
    /// For a model that is large enough to wait for memory. Experts take more time for each token more, and those of limited capacity
    /// drop other tokens when more are read at once.
    pub(crate) fn of(model: &Transformer) -> Option<Self> {
        let has_experts = model
            .stack
            .blocks
            .iter()
            .any(|block| block.mixture.is_some());
        if has_experts || model.stack.num_params() < LARGE {
            return None;
        }
        model.draft().map(Self::new)
    }

    pub(crate) fn new(model: Transformer) -> Self {
        Self { model, right: 0.8 }
    }

    /// How many drafts at a time give most tokens for their time. If one is right with probability p, k of them and what the
    /// model says after those that are right are `1 + p + .. + p^k` tokens (Leviathan et al. 2022, arXiv:2211.17192).
    pub(crate) fn count(&self) -> usize {
        let (mut count, mut most) = (0, 1.0);
        let (mut tokens, mut chance) = (1.0, 1.0);
        for drafts in 1..=MOST {
            chance *= self.right;
            tokens += chance;
            let rate = tokens / (1.0 + drafts as f64 * (DRAFTING + READING));
            if rate > most {
                (count, most) = (drafts, rate);
            }
        }
        count
    }

    /// Takes into account that of so many drafts the first `right` were right. Where there were none, the share rises a little, so that
    /// in time there are some again.
    pub(crate) fn learn(&mut self, right: usize, drafts: usize) {
        let mut see = |outcome: f64, weight: f64| self.right += weight * (outcome - self.right);
        (0..right).for_each(|_| see(1.0, RECENT));
        if right < drafts {
            see(0.0, RECENT);
        }
        if drafts == 0 {
            see(1.0, RECENT / 10.0);
        }
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::Device;
    use burn_zoo_nn::{TransformerConfig, block::BlockConfig};

    use super::*;

    #[test]
    fn as_many_are_drafted_as_are_likely_to_be_right() {
        let block = BlockConfig::gpt2(8, 2);
        let config = TransformerConfig::new(9, 8, 8, vec![block]);
        let model = config.init(&Device::flex());
        assert!(Drafter::of(&model).is_none(), "it is small");
        let mut drafter = Drafter::new(model);
        let begin = drafter.count();
        assert!(0 < begin && begin < MOST);
        (0..20).for_each(|_| drafter.learn(2, 2));
        assert_eq!(drafter.count(), MOST);
        let mut counts = vec![drafter.count()];
        while drafter.count() > 0 {
            drafter.learn(0, drafter.count());
            counts.push(drafter.count());
            assert!(counts.len() < 30, "{counts:?}");
        }
        assert!(
            counts.is_sorted_by(|more, fewer| more >= fewer),
            "{counts:?}"
        );
        let waits = std::iter::from_fn(|| {
            drafter.learn(0, 0);
            (drafter.count() == 0).then_some(())
        });
        assert!(waits.take(100).count() < 100, "it tries again");
    }
}
