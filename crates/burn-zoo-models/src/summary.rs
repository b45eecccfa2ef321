//! What a model is made of, counted from its configuration: nothing is allocated.

use std::collections::BTreeMap;

use burn::tensor::Device;
use burn_zoo_nn::{
    ConfigError, Transformer, TransformerConfig,
    attention::{AttentionConfig, AttentionPattern},
    block::{BlockConfig, NormPlacement},
    embedding::PositionConfig,
    init,
    mixture::ExpertCapacity,
};
use serde::Serialize;

use crate::{
    family::{Family, Preset},
    weights::for_each_parameter,
};

/// A preset in numbers.
#[derive(Clone, Debug, Serialize)]
pub struct Summary {
    /// What it is called, such as `bloom-176b`.
    pub name: String,
    /// Its family.
    pub family: String,
    /// `model_type` in `config.json`.
    pub model_type: String,
    /// Parameters, counted. A tied head counts once.
    pub parameters: u64,
    /// Those that one token goes through; fewer in mixtures of experts.
    pub active_parameters: u64,
    /// How many its authors say it has.
    pub published_parameters: Option<u64>,
    /// How much the count is above the published figure, in percent of it.
    pub difference_percent: Option<f64>,
    /// Why they differ, or what is a reconstruction.
    pub note: Option<String>,
    /// Blocks, of encoder and decoder together.
    pub layers: usize,
    /// The width of the residual stream.
    pub d_model: usize,
    /// Query heads of a block.
    pub heads: usize,
    /// Different tokens.
    pub vocab_size: usize,
    /// The longest sequence.
    pub context_length: usize,
    /// Memory for 32-bit weights.
    pub weight_bytes_f32: u64,
    /// Memory for 16-bit weights.
    pub weight_bytes_bf16: u64,
    /// Memory for training with AdamW in 32 bits, activations aside: weights, gradients and two
    /// moments.
    pub training_bytes_adamw: u64,
}

impl Summary {
    /// Counts a preset.
    pub fn new(family: &Family, preset: &Preset) -> Result<Self, ConfigError> {
        let config = preset.architecture()?.transformer;
        let parameters = config.n_parameters() as u64;
        let published = preset.published_parameters;
        let difference =
            |published: u64| (parameters as f64 - published as f64) / published as f64 * 100.0;
        let encoder_layers = config
            .encoder
            .as_ref()
            .map_or(0, |stack| stack.blocks.len());
        Ok(Self {
            name: preset.name.to_owned(),
            family: family.name.to_owned(),
            model_type: family.model_type.to_owned(),
            parameters,
            active_parameters: config.n_active_parameters() as u64,
            published_parameters: published,
            difference_percent: published.map(difference),
            note: preset.note.map(str::to_owned),
            layers: encoder_layers + config.stack.blocks.len(),
            d_model: config.d_model(),
            heads: config
                .stack
                .blocks
                .first()
                .map_or(0, |block| block.attention.n_heads),
            vocab_size: config.vocab_size(),
            context_length: config.context_length(),
            weight_bytes_f32: 4 * parameters,
            weight_bytes_bf16: 2 * parameters,
            training_bytes_adamw: 16 * parameters,
        })
    }
}

/// A part of a model: a module with parts of its own, or a parameter with a shape.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Part {
    /// Its name, or the numbers of equal parts in a list.
    pub name: String,
    /// What it does.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// Of a parameter.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shape: Option<Vec<usize>>,
    /// How many equal parts this stands for.
    pub count: u64,
    /// Parameters of one of them.
    pub parameters: u64,
    /// What one of them is made of.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub parts: Vec<Part>,
}

/// The module tree while it grows.
#[derive(Default)]
struct Node {
    shape: Option<Vec<usize>>,
    order: Vec<String>,
    parts: BTreeMap<String, Node>,
}

impl Node {
    fn insert(&mut self, path: &str, shape: Vec<usize>) {
        let (name, rest) = match path.split_once('.') {
            Some((name, rest)) => (name, Some(rest)),
            None => (path, None),
        };
        if !self.parts.contains_key(name) {
            self.order.push(name.to_owned());
        }
        let part = self.parts.entry(name.to_owned()).or_default();
        match rest {
            Some(rest) => part.insert(rest, shape),
            None => part.shape = Some(shape),
        }
    }

    fn into_part(self, name: String, path: &str, descriptions: &BTreeMap<String, String>) -> Part {
        let mut nodes = self.parts;
        let mut parts: Vec<Part> = Vec::new();
        let mut numbers: Vec<Vec<usize>> = Vec::new();
        for name in self.order {
            let Some(node) = nodes.remove(&name) else {
                continue;
            };
            let child = match path {
                "" => name.clone(),
                _ => format!("{path}.{name}"),
            };
            let part = node.into_part(name.clone(), &child, descriptions);
            // Equal parts of a list are shown once.
            let equal = |other: &Part| {
                (&other.description, &other.parts) == (&part.description, &part.parts)
            };
            let number = name.parse::<usize>().ok();
            match (number, parts.iter().position(equal)) {
                (Some(number), Some(index)) => {
                    parts[index].count += 1;
                    numbers[index].push(number);
                }
                _ => {
                    parts.push(part);
                    numbers.push(number.into_iter().collect());
                }
            }
        }
        for (part, numbers) in parts.iter_mut().zip(numbers) {
            if !numbers.is_empty() {
                part.name = range(&numbers);
            }
        }
        let own: usize = self
            .shape
            .as_ref()
            .map_or(0, |shape| shape.iter().product());
        Part {
            name,
            description: descriptions.get(path).cloned(),
            shape: self.shape,
            count: 1,
            parameters: own as u64
                + parts
                    .iter()
                    .map(|part| part.count * part.parameters)
                    .sum::<u64>(),
            parts,
        }
    }
}

/// `0–5`, or `0, 2, …, 94`, or all of them.
fn range(numbers: &[usize]) -> String {
    let step = match numbers {
        [first, second, ..] => second - first,
        _ => 1,
    };
    let is_even = numbers.windows(2).all(|pair| pair[1] - pair[0] == step);
    match numbers {
        [only] => only.to_string(),
        [first, .., last] if is_even && step == 1 => format!("{first}–{last}"),
        [first, second, _, .., last] if is_even => format!("{first}, {second}, …, {last}"),
        _ => {
            let numbers: Vec<String> = numbers.iter().map(usize::to_string).collect();
            numbers.join(", ")
        }
    }
}

/// A model as a tree of its modules.
pub fn tree(name: &str, config: &TransformerConfig) -> Part {
    let model: Transformer = init::shapes_only(|| config.init(&Device::default()));
    let mut root = Node::default();
    for_each_parameter(&model, |path, shape| root.insert(&path, shape));
    root.into_part(name.to_owned(), "", &descriptions(config))
}

fn descriptions(config: &TransformerConfig) -> BTreeMap<String, String> {
    let mut all = BTreeMap::new();
    let position = match config.embedding.position {
        PositionConfig::None => None,
        PositionConfig::Learned | PositionConfig::LearnedSkippingPadding { .. } => {
            Some("learned positions")
        }
        PositionConfig::Sinusoidal => Some("sinusoidal positions"),
        PositionConfig::PrefixAndBlock => Some("learned positions in prefix and block"),
    };
    if let Some(position) = position {
        all.insert("embedding".to_owned(), position.to_owned());
    }
    let stacks = [
        ("encoder", config.encoder.as_ref()),
        ("stack", Some(&config.stack)),
    ];
    for (path, stack) in stacks {
        let Some(stack) = stack else { continue };
        for (index, block) in stack.blocks.iter().enumerate() {
            let path = format!("{path}.blocks.{index}");
            describe_block(&mut all, &path, block);
        }
        if let Some(relative) = &stack.relative_bias {
            let description = format!(
                "{} ranges of distances up to {}",
                relative.n_buckets, relative.max_distance
            );
            all.insert(format!("{path}.relative"), description);
        }
    }
    all
}

fn describe_block(all: &mut BTreeMap<String, String>, path: &str, block: &BlockConfig) {
    let placement = match block.placement {
        NormPlacement::Pre => "pre-norm",
        NormPlacement::Post => "post-norm",
        NormPlacement::Sandwich => "sandwich norm",
        NormPlacement::NormedResidual => "pre-norm, normed residual",
        NormPlacement::Parallel { .. } => "parallel",
    };
    all.insert(path.to_owned(), placement.to_owned());
    all.insert(
        format!("{path}.attention"),
        describe_attention(&block.attention),
    );
    if let Some(cross) = &block.cross_attention {
        all.insert(format!("{path}.cross_attention"), describe_attention(cross));
    }
    let network = &block.feed_forward;
    let gated = if network.gated { "gated " } else { "" };
    let network = format!(
        "{gated}{:?}, {} → {} → {}",
        network.activation, network.d_model, network.d_ff, network.d_model
    );
    match &block.mixture {
        None => all.insert(format!("{path}.feed_forward"), network),
        Some(mixture) => {
            let capacity = match mixture.capacity {
                ExpertCapacity::Dropless => "dropless".to_owned(),
                ExpertCapacity::Limited { factor } => format!("capacity {factor}"),
            };
            let description = format!(
                "{} of {} experts for each token, {capacity}, {network}",
                mixture.top_k, mixture.n_experts
            );
            all.insert(format!("{path}.mixture"), description)
        }
    };
}

fn describe_attention(attention: &AttentionConfig) -> String {
    let mut parts = vec![match attention.pattern {
        AttentionPattern::Causal => "causal".to_owned(),
        AttentionPattern::Bidirectional => "bidirectional".to_owned(),
        AttentionPattern::Prefix => "causal after a prefix".to_owned(),
        AttentionPattern::Banded { window } => format!("the last {window}"),
    }];
    parts.push(format!(
        "{} heads of {}",
        attention.n_heads, attention.head_dim
    ));
    if attention.n_kv_heads != attention.n_heads {
        parts.push(format!("{} of keys and values", attention.n_kv_heads));
    }
    if let Some(rotary) = &attention.rotary {
        parts.push(format!("rotary {}", rotary.dims));
    }
    if attention.alibi {
        parts.push("ALiBi".to_owned());
    }
    parts.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::family::families;

    /// Counts are closed forms; the tree sums what the modules really have.
    #[test]
    fn counts_are_those_of_the_modules() {
        for family in families() {
            for preset in family.presets() {
                let summary = Summary::new(&family, &preset).unwrap();
                let config = preset.architecture().unwrap().transformer;
                assert_eq!(
                    tree(preset.name, &config).parameters,
                    summary.parameters,
                    "{}",
                    preset.name
                );
            }
        }
    }

    #[test]
    fn counts_are_within_a_percent_of_the_published_or_say_why_not() {
        for family in families() {
            for preset in family.presets() {
                let summary = Summary::new(&family, &preset).unwrap();
                let is_close = summary.difference_percent.is_some_and(|d| d.abs() <= 1.0);
                assert!(is_close || summary.note.is_some(), "{summary:#?}");
            }
        }
    }

    /// Figures of the reference implementations and of the papers.
    #[test]
    fn known_models_have_their_known_counts() {
        for (name, expected) in [
            ("bert-base", 110_106_428),
            ("bert-large", 336_226_108),
            ("gpt2-124m", 124_439_808),
            ("gpt2-355m", 354_823_168),
            ("gpt2-774m", 774_030_080),
            ("gpt2-1.5b", 1_557_611_200),
            ("gpt3-125m", 125_226_240),
            ("gpt3-350m", 355_871_744),
            ("gpt3-760m", 760_300_032),
            ("gpt3-1.3b", 1_315_723_264),
            ("gpt3-2.7b", 2_651_553_280),
            ("gpt3-6.7b", 6_658_404_352),
            ("gpt3-13b", 12_853_386_240),
            ("gpt3-175b", 174_604_259_328),
            ("bloom-560m", 559_214_592),
            ("bloom-1b1", 1_065_314_304),
            ("bloom-1b7", 1_722_408_960),
            ("bloom-3b", 3_002_557_440),
            ("bloom-7b1", 7_069_016_064),
            ("bloom-176b", 176_247_271_424),
            ("mt-nlg-530b", 529_600_819_200),
            ("t5-small", 60_506_624),
            ("t5-base", 222_903_552),
            ("t5-large", 737_668_096),
            ("t5-3b", 2_851_598_336),
            ("t5-11b", 11_307_321_344),
            ("t5-v1.1-small", 76_961_152),
            ("t5-v1.1-base", 247_577_856),
            ("t5-v1.1-large", 783_150_080),
            ("t5-v1.1-xl", 2_849_757_184),
            ("t5-v1.1-xxl", 11_135_332_352),
            ("esm2-8m", 7_512_474),
            ("esm2-35m", 33_501_394),
            ("esm2-150m", 148_140_154),
            ("esm2-650m", 651_043_254),
            ("esm2-3b", 2_839_005_634),
            ("esm2-15b", 15_129_100_194),
            ("glm-10b", 9_880_682_496),
            ("wudao2-1.75t", 1_749_661_151_952),
            ("mixtral-8x7b", 46_702_792_704),
        ] {
            let (family, preset) = crate::family::find_preset(name).unwrap();
            let summary = Summary::new(&family, &preset).unwrap();
            assert_eq!(summary.parameters, expected, "{name}");
        }
    }
}
