//! Blocks one after the other, and a final norm: an encoder or a decoder.

use burn::module::Module;
use burn::tensor::{Device, Tensor};
use serde::{Deserialize, Serialize};

use crate::{
    ConfigError,
    attention::AttentionPattern,
    bias::{RelativeBias, RelativeBiasConfig, RelativeDirection},
    block::{Block, BlockConfig, NormPlacement},
    cache::{KvCache, LayerCache},
    linear::{Linears, within},
    norm::{Norm, NormConfig},
    pass::Pass,
    recompute, require_positive,
};

/// Configuration of a [`Stack`].
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StackConfig {
    /// One entry for each layer.
    pub blocks: Vec<BlockConfig>,
    /// A bias by distance that the self-attention of all layers shares, if any.
    pub relative_bias: Option<RelativeBiasConfig>,
    /// The norm after the last block. Without one, a pre-norm stack ends unnormalised.
    pub final_norm: Option<NormConfig>,
}

impl StackConfig {
    /// These blocks, and after pre-norm ones the norm that they lack.
    pub fn new(blocks: Vec<BlockConfig>) -> Self {
        let final_norm = match blocks.last() {
            Some(block) if block.placement != NormPlacement::Post => Some(block.norm.clone()),
            _ => None,
        };
        Self {
            blocks,
            relative_bias: None,
            final_norm,
        }
    }

    /// Refuses parts that do not fit together or into a stack of width `d_model`.
    pub fn validate(&self, d_model: usize) -> Result<(), ConfigError> {
        require_positive("blocks", self.blocks.len())?;
        for (index, block) in self.blocks.iter().enumerate() {
            let parent = format!("blocks.{index}");
            block.validate().map_err(|error| error.within(&parent))?;
            if block.attention.d_model != d_model {
                let problem = format!(
                    "must equal the model's d_model ({d_model}), got {}",
                    block.attention.d_model
                );
                return Err(ConfigError::new("attention.d_model", problem).within(&parent));
            }
        }
        if self.has_prefix() && !self.is_decoder() {
            return Err(ConfigError::new(
                "blocks",
                "mix `prefix` and `bidirectional` attention: the second shows what the first hides",
            ));
        }
        if let Some(relative) = &self.relative_bias {
            relative
                .validate()
                .map_err(|error| error.within("relative_bias"))?;
            let other = self
                .blocks
                .iter()
                .find(|block| block.attention.n_heads != relative.n_heads);
            if let Some(block) = other {
                let problem = format!(
                    "must equal the n_heads of every block, but one has {} and the table {}",
                    block.attention.n_heads, relative.n_heads
                );
                return Err(ConfigError::new("relative_bias.n_heads", problem));
            }
            let sees_both = !self.is_causal();
            if sees_both && relative.direction == RelativeDirection::Backward {
                return Err(ConfigError::new(
                    "relative_bias.direction",
                    "must be `both`: the blocks see keys after the query",
                ));
            }
        }
        Ok(())
    }

    /// Whether no position sees a later one, so that tokens can be added one by one.
    pub fn is_causal(&self) -> bool {
        self.blocks.iter().all(|block| {
            matches!(
                block.attention.pattern,
                AttentionPattern::Causal | AttentionPattern::Banded { .. }
            )
        })
    }

    /// Whether some blocks see a prefix whole.
    pub fn has_prefix(&self) -> bool {
        let mut patterns = self.blocks.iter().map(|block| block.attention.pattern);
        patterns.any(|pattern| pattern == AttentionPattern::Prefix)
    }

    /// Whether tokens can be generated one by one: causal, perhaps after a prefix.
    pub fn is_decoder(&self) -> bool {
        self.blocks
            .iter()
            .all(|block| block.attention.pattern != AttentionPattern::Bidirectional)
    }

    /// How many parameters the module has.
    pub fn n_parameters(&self, d_model: usize) -> usize {
        self.count(d_model, BlockConfig::n_parameters)
    }

    /// How many of them one token goes through.
    pub fn n_active_parameters(&self, d_model: usize) -> usize {
        self.count(d_model, BlockConfig::n_active_parameters)
    }

    fn count(&self, d_model: usize, block: fn(&BlockConfig) -> usize) -> usize {
        let norm = self.final_norm.as_ref();
        let relative = self.relative_bias.as_ref();
        self.blocks.iter().map(block).sum::<usize>()
            + norm.map_or(0, |norm| norm.n_parameters(d_model))
            + relative.map_or(0, RelativeBiasConfig::n_parameters)
    }

    /// A stack on `device`.
    pub fn init(&self, d_model: usize, device: &Device) -> Stack {
        Stack {
            relative: self.relative_bias.as_ref().map(|bias| bias.init(device)),
            blocks: self.blocks.iter().map(|block| block.init(device)).collect(),
            final_norm: self
                .final_norm
                .as_ref()
                .map(|norm| norm.init(d_model, device)),
        }
    }
}

/// An encoder or a decoder without its embedding. Built by [`StackConfig::init`].
#[derive(Module, Debug)]
pub struct Stack {
    /// The bias by distance that the layers share.
    pub relative: Option<RelativeBias>,
    /// The layers.
    pub blocks: Vec<Block>,
    /// The norm after the last block.
    pub final_norm: Option<Norm>,
}

impl Stack {
    /// Its linear layers.
    pub(crate) fn linears(&mut self) -> Linears<'_> {
        let blocks = self.blocks.iter_mut().enumerate();
        blocks
            .flat_map(|(index, block)| within(&format!("blocks.{index}"), block.linears()))
            .collect()
    }

    /// An empty cache for sequences of up to `capacity` positions.
    pub fn new_cache(&self, capacity: usize) -> KvCache {
        let layer = |_| LayerCache::new(capacity);
        KvCache {
            layers: self.blocks.iter().map(layer).collect(),
            memory: None,
        }
    }

    /// `[batch, seq, d_model] → [batch, seq, d_model]`.
    ///
    /// With a cache, `x` continues the sequence that the cache holds and is added to it.
    pub fn forward(
        &self,
        mut x: Tensor<3>,
        pass: &mut Pass,
        mut cache: Option<&mut KvCache>,
    ) -> Tensor<3> {
        let [_, seq, _] = x.dims();
        pass.relative = self
            .relative
            .as_ref()
            .map(|relative| recompute::cut(relative.forward(seq, pass.start + seq)));
        if let Some(memory) = &mut pass.memory {
            memory.hidden = recompute::cut(memory.hidden.clone());
        }
        x = recompute::cut(x);
        for (index, block) in self.blocks.iter().enumerate() {
            x = match cache.as_mut() {
                Some(cache) => block.forward(x, pass, Some(&mut cache.layers[index])),
                None => recompute::forward(block, x, pass),
            };
        }
        match &self.final_norm {
            Some(norm) => norm.forward(x),
            None => x,
        }
    }
}
