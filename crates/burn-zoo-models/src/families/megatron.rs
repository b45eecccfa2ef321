//! Megatron's models (Shoeybi et al. 2019, arXiv:1909.08053): a pre-norm BERT, and MT-NLG 530B (Smith
//! et al. 2022, arXiv:2201.11990).

use burn_zoo_nn::{ConfigError, TransformerConfig, block::NormPlacement};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{
    bert::{EncoderFields, encoder_names, head_names},
    decoder_head,
    gpt3::Gpt3Config,
};
use crate::{
    family::{Common, FamilyConfig, Preset, Task},
    names::Names,
};

/// The fields of a Megatron-BERT's `config.json`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default)]
pub struct MegatronBertConfig {
    /// Its sizes.
    #[serde(flatten)]
    pub fields: EncoderFields,
}

impl Default for MegatronBertConfig {
    fn default() -> Self {
        Self {
            fields: EncoderFields {
                vocab_size: 29056,
                ..EncoderFields::size(24, 1024, 16)
            },
        }
    }
}

impl FamilyConfig for MegatronBertConfig {
    const MODEL_TYPE: &'static str = "megatron-bert";
    const NAME: &'static str = "Megatron-BERT";
    const CLASS: &'static str = "MegatronBertForPreTraining";

    /// As the reference's configuration class has them.
    fn left_out() -> Value {
        json!({
            "vocab_size": 29056,
            "hidden_size": 1024,
            "num_hidden_layers": 24,
            "num_attention_heads": 16,
            "intermediate_size": 4096,
        })
    }

    fn build(
        &self,
        task: Task,
        common: &Common,
    ) -> Result<(TransformerConfig, Names), ConfigError> {
        let fields = &self.fields;
        let mut config = fields.encoder(NormPlacement::Pre)?;
        (config.head, config.pooler) = fields.head(Self::NAME, task, common)?;
        let names = encoder_names("bert.")
            .norm(
                "stack.blocks.#.attention_norm",
                "encoder.layer.#.attention.ln",
            )
            .norm("stack.blocks.#.feed_forward_norm", "encoder.layer.#.ln")
            .norm("stack.final_norm", "encoder.ln");
        Ok((config, head_names(names, task, fields)))
    }

    fn presets() -> Vec<Preset> {
        vec![
            Preset::new("megatron-bert-345m", 345_000_000, &Self::default()).note(
                "published as 345M, which is the GPT-2 of this shape: BERT's vocabulary is smaller",
            ),
        ]
    }
}

/// The sizes of an MT-NLG. The paper gives layers, width, heads and context; the rest follows
/// Megatron's GPT.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(transparent)]
pub struct MtNlgConfig(pub Gpt3Config);

impl FamilyConfig for MtNlgConfig {
    const MODEL_TYPE: &'static str = "mt-nlg";
    const NAME: &'static str = "MT-NLG";
    const CLASS: &'static str = "MtNlgForCausalLM";

    fn build(
        &self,
        task: Task,
        common: &Common,
    ) -> Result<(TransformerConfig, Names), ConfigError> {
        let head = decoder_head(Self::NAME, task, true, common, self.0.dropout)?;
        Ok((self.0.transformer()?.with_head(head), Names::new()))
    }

    fn presets() -> Vec<Preset> {
        let whole = Self(Gpt3Config {
            // GPT-2's 50,257, padded to a multiple of 128 for each of 8 tensor-parallel ranks.
            vocab_size: 51200,
            n_layers: 105,
            d_model: 20480,
            n_heads: 128,
            window: None,
            // √(1/3d), as the paper says.
            initializer_range: 4e-3,
            ..Gpt3Config::default()
        });
        vec![Preset::new("mt-nlg-530b", 530_000_000_000, &whole)]
    }
}
