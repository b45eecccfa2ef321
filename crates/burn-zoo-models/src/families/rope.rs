//! Rotary positions as `config.json` describes them: `rope_theta` and `rope_scaling` by version 4 of
//! the `transformers` library, `rope_parameters` by version 5.

use burn_zoo_nn::{
    ConfigError,
    rotary::{RotaryConfig, RotaryScaling},
};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::family::parse;

/// The fields of both versions.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct RopeFields {
    /// The base.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rope_theta: Option<f64>,
    /// The scaling.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rope_scaling: Option<Map<String, Value>>,
    /// All of it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rope_parameters: Option<Map<String, Value>>,
    /// The share of a head's channels that turn.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub partial_rotary_factor: Option<f64>,
}

/// What the two versions say, in one form.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Rope {
    rope_theta: Option<f64>,
    partial_rotary_factor: Option<f64>,
    #[serde(alias = "type")]
    rope_type: Option<String>,
    factor: Option<f64>,
    original_max_position_embeddings: Option<usize>,
    low_freq_factor: Option<f64>,
    high_freq_factor: Option<f64>,
    attention_factor: Option<f64>,
    beta_fast: Option<f64>,
    beta_slow: Option<f64>,
    mscale: Option<f64>,
    mscale_all_dim: Option<f64>,
    truncate: Option<bool>,
}

impl RopeFields {
    /// The rotary positions of a head, with the family's default base and share.
    pub(super) fn rotary(
        &self,
        head_dim: usize,
        context_length: usize,
        default_base: f64,
        default_share: f64,
    ) -> Result<RotaryConfig, ConfigError> {
        let mut merged = self.rope_scaling.clone().unwrap_or_default();
        // Old files write both `type` and `rope_type`.
        if merged.contains_key("rope_type") {
            merged.remove("type");
        }
        merged.extend(self.rope_parameters.clone().unwrap_or_default());
        if merged.contains_key("rope_type") {
            merged.remove("type");
        }
        let field = match self.rope_parameters {
            Some(_) => "rope_parameters",
            None => "rope_scaling",
        };
        let rope: Rope = parse(Value::Object(merged)).map_err(|error| error.within(field))?;
        let base = rope.rope_theta.or(self.rope_theta).unwrap_or(default_base);
        let share = rope.partial_rotary_factor.or(self.partial_rotary_factor);
        let share = share.unwrap_or(default_share);
        if !(share > 0.0 && share <= 1.0) {
            let problem = format!("must be above 0 and at most 1, got {share}");
            return Err(ConfigError::new("partial_rotary_factor", problem));
        }
        let dims = (head_dim as f64 * share) as usize;
        let scaling = rope
            .scaling(context_length)
            .map_err(|error| error.within(field))?;
        // Of an odd share the reference turns one channel more, at the angles of the odd share.
        let (dims, base) = match dims % 2 {
            0 => (dims, base),
            _ => (dims + 1, base.powf((dims + 1) as f64 / dims as f64)),
        };
        Ok(RotaryConfig {
            base,
            scaling,
            ..RotaryConfig::half(dims)
        })
    }
}

impl Rope {
    fn scaling(&self, context_length: usize) -> Result<RotaryScaling, ConfigError> {
        let need = |field: &str, value: Option<f64>| {
            value.ok_or_else(|| ConfigError::new(field, "is missing"))
        };
        let original_context = self
            .original_max_position_embeddings
            .unwrap_or(context_length);
        Ok(match self.rope_type.as_deref().unwrap_or("default") {
            "default" => RotaryScaling::None,
            "linear" => RotaryScaling::Linear {
                factor: need("factor", self.factor)?,
            },
            "ntk" => RotaryScaling::Ntk {
                factor: need("factor", self.factor)?,
            },
            // The one scaling for which the reference reads no original context.
            "dynamic" => RotaryScaling::DynamicNtk {
                factor: need("factor", self.factor)?,
                original_context: context_length,
            },
            "llama3" => RotaryScaling::Llama3 {
                factor: need("factor", self.factor)?,
                low_frequency_factor: need("low_freq_factor", self.low_freq_factor)?,
                high_frequency_factor: need("high_freq_factor", self.high_freq_factor)?,
                original_context,
            },
            "yarn" => {
                let factor = match self.factor {
                    Some(factor) => factor,
                    None => context_length as f64 / original_context as f64,
                };
                let temperature = |scale: f64| match factor > 1.0 {
                    true => 0.1 * scale * factor.ln() + 1.0,
                    false => 1.0,
                };
                let derived = match (self.mscale, self.mscale_all_dim) {
                    (Some(scale), Some(all)) if scale != 0.0 && all != 0.0 => {
                        temperature(scale) / temperature(all)
                    }
                    _ => temperature(1.0),
                };
                RotaryScaling::Yarn {
                    factor,
                    beta_fast: self.beta_fast.unwrap_or(32.0),
                    beta_slow: self.beta_slow.unwrap_or(1.0),
                    original_context,
                    attention_factor: self.attention_factor.unwrap_or(derived),
                    truncate: self.truncate.unwrap_or(true),
                }
            }
            other => {
                let problem = format!(
                    "unknown scaling `{other}`: use default, linear, ntk, dynamic, llama3 or yarn"
                );
                return Err(ConfigError::new("rope_type", problem));
            }
        })
    }
}
