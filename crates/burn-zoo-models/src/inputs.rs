//! What a model reads, as a JSON file that names it as the `transformers` library does.

use burn::tensor::{Bool, Device, Int, Tensor, TensorData};
use burn_zoo_nn::{
    ConfigError, HeadConfig, Inputs, TransformerConfig, embedding::PositionConfig,
    head::SequenceState,
};
use serde::{Deserialize, Serialize};

use crate::family::Architecture;

/// Token ids and what belongs to them, one list for each sequence of the batch.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InputFile {
    /// The tokens.
    pub input_ids: Vec<Vec<i64>>,
    /// 1 for a token, 0 for padding.
    #[serde(default)]
    pub attention_mask: Option<Vec<Vec<i64>>>,
    /// The segment of each token.
    #[serde(default)]
    pub token_type_ids: Option<Vec<Vec<i64>>>,
    /// What the decoder of an encoder–decoder reads.
    #[serde(default)]
    pub decoder_input_ids: Option<Vec<Vec<i64>>>,
    /// How many tokens of each sequence are visible to all of its tokens, for prefix attention.
    #[serde(default)]
    pub prefix_lengths: Option<Vec<i64>>,
}

/// Lists of one length as a matrix, each value in `0..limit`.
fn matrix(
    field: &str,
    rows: &[Vec<i64>],
    limit: usize,
    device: &Device,
) -> Result<Tensor<2, Int>, ConfigError> {
    let seq = rows.first().map_or(0, Vec::len);
    if seq == 0 {
        return Err(ConfigError::new(field, "is empty: give at least one token"));
    }
    for (index, row) in rows.iter().enumerate() {
        if row.len() != seq {
            let problem = format!(
                "must have one length, but sequence {index} has {} and the first {seq}; pad the \
                 shorter and give an attention_mask",
                row.len()
            );
            return Err(ConfigError::new(field, problem));
        }
        let outside = row
            .iter()
            .find(|&&value| value < 0 || value >= limit as i64);
        if let Some(value) = outside {
            let problem = format!("must be at least 0 and below {limit}, got {value}");
            return Err(ConfigError::new(field, problem));
        }
    }
    let values: Vec<i64> = rows.concat();
    let data = TensorData::new(values, [rows.len(), seq]);
    Ok(Tensor::from_data(data, device))
}

impl InputFile {
    /// Checks the input against a model, and puts it on a device.
    ///
    /// # Errors
    ///
    /// When lists differ in length, or values or lengths are outside what the model has, with the
    /// field's name.
    pub fn inputs(
        &self,
        architecture: &Architecture,
        device: &Device,
    ) -> Result<Inputs, ConfigError> {
        let config = &architecture.transformer;
        let vocab_size = config.vocab_size();
        let tokens = matrix("input_ids", &self.input_ids, vocab_size, device)?;
        check_length("input_ids", &tokens, config)?;
        let alike = |field: &str, other: &Option<Vec<Vec<i64>>>, limit: usize| {
            let Some(rows) = other else { return Ok(None) };
            let other = matrix(field, rows, limit, device)?;
            if other.dims() != tokens.dims() {
                let problem = format!(
                    "must have the shape of input_ids, {:?}, got {:?}",
                    tokens.dims(),
                    other.dims()
                );
                return Err(ConfigError::new(field, problem));
            }
            Ok(Some(other))
        };
        let visible = alike("attention_mask", &self.attention_mask, 2)?;
        let n_segments = config.embedding.n_segments;
        if n_segments == 0 && self.token_type_ids.is_some() {
            let problem = "are for models that tell segments apart, which this one does not";
            return Err(ConfigError::new("token_type_ids", problem));
        }
        let segments = alike("token_type_ids", &self.token_type_ids, n_segments)?;
        let reads_last = matches!(
            config.head,
            HeadConfig::Sequence {
                state: SequenceState::Last { padding_id: None },
                ..
            }
        );
        if reads_last && visible.is_none() && self.input_ids.len() > 1 {
            let problem = "must be one sequence, or come with an attention_mask: config.json has no \
                           pad_token_id, so that the last token of a padded one could not be found";
            return Err(ConfigError::new("input_ids", problem));
        }
        Ok(Inputs {
            visible: visible.map(|mask| -> Tensor<2, Bool> { mask.equal_elem(1) }),
            segments,
            prefix_lengths: self.prefix_lengths(config, &tokens, device)?,
            decoder_tokens: self.decoder_tokens(architecture, &tokens, device)?,
            ..tokens.into()
        })
    }

    fn prefix_lengths(
        &self,
        config: &TransformerConfig,
        tokens: &Tensor<2, Int>,
        device: &Device,
    ) -> Result<Option<Tensor<1, Int>>, ConfigError> {
        let Some(lengths) = &self.prefix_lengths else {
            return Ok(None);
        };
        if !config.stack.has_prefix() {
            let problem = "are for models with prefix attention, which this one does not have";
            return Err(ConfigError::new("prefix_lengths", problem));
        }
        let [batch, seq] = tokens.dims();
        if lengths.len() != batch {
            let problem = format!("must be one for each of the {batch} sequences");
            return Err(ConfigError::new("prefix_lengths", problem));
        }
        if let Some(length) = lengths.iter().find(|&&n| n < 0 || n > seq as i64) {
            let problem = format!("must be at least 0 and at most {seq}, got {length}");
            return Err(ConfigError::new("prefix_lengths", problem));
        }
        Ok(Some(Tensor::from_data(lengths.as_slice(), device)))
    }

    /// Classifiers of whole texts give the decoder the encoder's tokens, one later.
    fn decoder_tokens(
        &self,
        architecture: &Architecture,
        tokens: &Tensor<2, Int>,
        device: &Device,
    ) -> Result<Option<Tensor<2, Int>>, ConfigError> {
        let config = &architecture.transformer;
        match (&self.decoder_input_ids, &config.encoder) {
            (Some(rows), Some(_)) => {
                let field = "decoder_input_ids";
                let decoder = matrix(field, rows, config.vocab_size(), device)?;
                check_length(field, &decoder, config)?;
                let reads_mark = matches!(
                    config.head,
                    HeadConfig::Sequence {
                        state: SequenceState::LastOccurrence { .. },
                        ..
                    }
                );
                if reads_mark && decoder.dims() != tokens.dims() {
                    let problem = "must have the shape of input_ids, where the end mark is looked \
                                   for; leave them out to have them made";
                    return Err(ConfigError::new(field, problem));
                }
                if rows.len() != self.input_ids.len() {
                    let problem = format!(
                        "must be as many sequences as input_ids, {}, got {}",
                        self.input_ids.len(),
                        rows.len()
                    );
                    return Err(ConfigError::new(field, problem));
                }
                Ok(Some(decoder))
            }
            (Some(_), None) => Err(ConfigError::new(
                "decoder_input_ids",
                "are for models with an encoder and a decoder",
            )),
            (None, None) => Ok(None),
            (None, Some(_)) if config.head.classifies() => {
                let start = architecture.common().decoder_start_token_id.unwrap_or(0) as i64;
                let [batch, seq] = tokens.dims();
                let first = Tensor::<2, Int>::zeros([batch, 1], device) + start;
                Ok(Some(match seq {
                    1 => first,
                    _ => Tensor::cat(vec![first, tokens.clone().narrow(1, 0, seq - 1)], 1),
                }))
            }
            (None, Some(_)) => Err(ConfigError::new(
                "decoder_input_ids",
                "is missing: the model has an encoder and a decoder",
            )),
        }
    }
}

/// Only learned positions end.
fn check_length(
    field: &str,
    tokens: &Tensor<2, Int>,
    config: &TransformerConfig,
) -> Result<(), ConfigError> {
    let [_, seq] = tokens.dims();
    let limit = config.context_length();
    let ends = !matches!(
        config.embedding.position,
        PositionConfig::None | PositionConfig::Sinusoidal
    );
    if ends && seq > limit {
        let problem = format!("must be at most {limit} tokens long, got {seq}");
        return Err(ConfigError::new(field, problem));
    }
    Ok(())
}
