//! How the parameters of a model are called, and how they lie, in another library's checkpoint.
//!
//! A table has one row for each kind of parameter. `#` stands for a layer's or an expert's number.
//!
//! ```
//! use burn_zoo_models::names::Names;
//!
//! let names = Names::new()
//!     .base_prefix("transformer.")
//!     .base("embedding.token", "wte.weight")
//!     .linear("stack.blocks.#.attention.output", "h.#.attn.out_proj");
//! let source = names.source("stack.blocks.7.attention.output.weight").unwrap();
//! assert_eq!(source.name, "transformer.h.7.attn.out_proj.weight");
//! ```

use std::collections::{BTreeMap, BTreeSet};

/// How one of our parameters lies in a tensor of the checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Whether a matrix has its output axis first, as PyTorch's `Linear`; ours has it last.
    pub is_transposed: bool,
    /// The share of the output axis that is ours.
    pub part: Part,
}

/// Which part of an output axis.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// All of it.
    Whole,
    /// One of several equal blocks: `[query | key | value]`.
    Block {
        /// Which.
        index: usize,
        /// Of how many.
        of: usize,
    },
    /// One of several equal blocks within each head: `[query | key | value]` repeated.
    Interleaved {
        /// Which.
        index: usize,
        /// Of how many.
        of: usize,
        /// The width of a head.
        head_dim: usize,
    },
}

impl Part {
    /// How many parts share the axis.
    pub fn of(self) -> usize {
        match self {
            Self::Whole => 1,
            Self::Block { of, .. } | Self::Interleaved { of, .. } => of,
        }
    }

    /// The checkpoint's index of our output `index` of `n`.
    pub fn position(self, output: usize, n: usize) -> usize {
        match self {
            Self::Whole => output,
            Self::Block { index, .. } => index * n + output,
            Self::Interleaved {
                index,
                of,
                head_dim,
            } => output / head_dim * of * head_dim + index * head_dim + output % head_dim,
        }
    }
}

impl Layout {
    pub(crate) const SAME: Self = Self {
        is_transposed: false,
        part: Part::Whole,
    };

    /// The checkpoint's shape for a parameter of ours.
    pub fn shape(self, ours: &[usize]) -> Vec<usize> {
        let mut shape = ours.to_vec();
        if let Some(outputs) = shape.last_mut() {
            *outputs *= self.part.of();
        }
        if self.is_transposed {
            shape.reverse();
        }
        shape
    }
}

/// Where a parameter is in a checkpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    /// The tensor's name as it is written.
    pub name: String,
    /// Other names that older or partial checkpoints have for it, in the order to try.
    pub others: Vec<String>,
    /// How it lies there.
    pub layout: Layout,
}

#[derive(Clone, Debug)]
struct Row {
    theirs: String,
    others: Vec<String>,
    layout: Layout,
    /// Whether the name has the prefix of the base model.
    is_base: bool,
}

/// The names of a family's parameters.
#[derive(Clone, Debug, Default)]
pub struct Names {
    /// By our name. Without any rows, names and layouts are our own.
    rows: BTreeMap<String, Row>,
    prefix: String,
    other_prefixes: Vec<String>,
    ignored: BTreeSet<String>,
    constants: Vec<(String, Vec<f32>)>,
    frequencies: Option<String>,
}

/// Replaces numbers between dots by `#` and returns them.
fn abstracted(name: &str) -> (String, Vec<&str>) {
    let mut numbers = Vec::new();
    let parts: Vec<&str> = name
        .split('.')
        .map(|part| match part.parse::<usize>() {
            Ok(_) => {
                numbers.push(part);
                "#"
            }
            Err(_) => part,
        })
        .collect();
    (parts.join("."), numbers)
}

/// A path with its numbers replaced by `*`: what layers of a kind have in common.
pub fn kind(path: &str) -> String {
    abstracted(path).0.replace('#', "*")
}

/// Replaces each `#` by its number.
fn filled(pattern: &str, numbers: &[&str]) -> String {
    let mut numbers = numbers.iter();
    let parts = pattern.split('.').map(|part| match part {
        "#" => numbers.next().copied().unwrap_or("#"),
        _ => part,
    });
    parts.collect::<Vec<_>>().join(".")
}

impl Names {
    /// The zoo's own names.
    pub fn new() -> Self {
        Self::default()
    }

    /// What names of the base model start with in a checkpoint of a model with a head. Checkpoints
    /// without it are read too.
    pub fn base_prefix(mut self, prefix: &str) -> Self {
        prefix.clone_into(&mut self.prefix);
        self
    }

    /// Another prefix that is read.
    pub fn also_prefix(mut self, prefix: &str) -> Self {
        self.other_prefixes.push(prefix.to_owned());
        self
    }

    /// Writes names of the base model without their prefix, as a checkpoint without a head has them.
    pub fn without_prefix(mut self) -> Self {
        let prefix = std::mem::take(&mut self.prefix);
        for (name, _) in &mut self.constants {
            if let Some(rest) = name.strip_prefix(&prefix) {
                *name = rest.to_owned();
            }
        }
        self.other_prefixes.push(prefix);
        self
    }

    fn row(mut self, ours: String, theirs: String, layout: Layout, is_base: bool) -> Self {
        let row = Row {
            theirs,
            others: Vec::new(),
            layout,
            is_base,
        };
        self.rows.insert(ours, row);
        self
    }

    /// A tensor of the base model.
    pub fn base(self, ours: &str, theirs: &str) -> Self {
        self.row(ours.to_owned(), theirs.to_owned(), Layout::SAME, true)
    }

    /// A tensor of a head.
    pub fn head(self, ours: &str, theirs: &str) -> Self {
        self.row(ours.to_owned(), theirs.to_owned(), Layout::SAME, false)
    }

    fn weight_and_bias(self, ours: &str, theirs: &str, layout: Layout, is_base: bool) -> Self {
        let bias = Layout {
            is_transposed: false,
            ..layout
        };
        let name = |module: &str, parameter: &str| format!("{module}.{parameter}");
        self.row(
            name(ours, "weight"),
            name(theirs, "weight"),
            layout,
            is_base,
        )
        .row(name(ours, "bias"), name(theirs, "bias"), bias, is_base)
    }

    /// Weight and bias of a norm of the base model.
    pub fn norm(self, ours: &str, theirs: &str) -> Self {
        self.weight_and_bias(ours, theirs, Layout::SAME, true)
    }

    /// Weight and bias of a PyTorch `Linear` of the base model.
    pub fn linear(self, ours: &str, theirs: &str) -> Self {
        self.linear_part(ours, theirs, Part::Whole)
    }

    /// A part of a PyTorch `Linear` of the base model.
    pub fn linear_part(self, ours: &str, theirs: &str, part: Part) -> Self {
        let layout = Layout {
            is_transposed: true,
            part,
        };
        self.weight_and_bias(ours, theirs, layout, true)
    }

    /// Weight and bias of a layer with our own axes, such as GPT-2's `Conv1D`.
    pub fn conv1d(self, ours: &str, theirs: &str, part: Part) -> Self {
        let layout = Layout {
            is_transposed: false,
            part,
        };
        self.weight_and_bias(ours, theirs, layout, true)
    }

    /// Weight and bias of a PyTorch `Linear` of a head.
    pub fn head_linear(self, ours: &str, theirs: &str) -> Self {
        let layout = Layout {
            is_transposed: true,
            part: Part::Whole,
        };
        self.weight_and_bias(ours, theirs, layout, false)
    }

    /// Weight and bias of a norm of a head.
    pub fn head_norm(self, ours: &str, theirs: &str) -> Self {
        self.weight_and_bias(ours, theirs, Layout::SAME, false)
    }

    /// Another name for one of our parameters: read when the first is missing, ignored when both are
    /// there, as tied weights that were stored twice.
    pub fn alias(mut self, ours: &str, other: &str) -> Self {
        if let Some(row) = self.rows.get_mut(ours) {
            row.others.push(other.to_owned());
        }
        self
    }

    /// A tensor that checkpoints of the family may carry and that is no parameter of this model, without
    /// the base model's prefix. A name that ends in `.*` stands for all that begin so.
    pub fn ignore(mut self, theirs: &str) -> Self {
        self.ignored.insert(theirs.to_owned());
        self
    }

    /// A vector of the base model that is no parameter, but that other libraries miss when it is not
    /// written.
    pub fn constant(self, theirs: &str, values: Vec<f32>) -> Self {
        let name = format!("{}{theirs}", self.prefix);
        self.head_constant(&name, values).ignore(theirs)
    }

    /// A [`constant`](Self::constant) that holds the frequencies of rotary positions. Where a checkpoint
    /// has it in 16 bits, the model was trained with the rounded ones.
    pub fn rotary_frequencies(mut self, theirs: &str, values: Vec<f32>) -> Self {
        self.frequencies = Some(theirs.to_owned());
        self.constant(theirs, values)
    }

    /// Writes other frequencies.
    pub fn set_rotary_frequencies(&mut self, frequencies: &[f64]) {
        let ending = self.frequencies.clone().unwrap_or_default();
        for (name, values) in &mut self.constants {
            if name.ends_with(&ending) {
                *values = frequencies.iter().map(|&f| f as f32).collect();
            }
        }
    }

    /// Whether checkpoints hold the frequencies of rotary positions.
    pub fn has_rotary_frequencies(&self) -> bool {
        self.frequencies.is_some()
    }

    /// Whether a tensor of the checkpoint holds the frequencies of rotary positions.
    pub fn is_frequencies(&self, theirs: &str) -> bool {
        let ending = self.frequencies.as_ref();
        ending.is_some_and(|ending| theirs == ending || theirs.ends_with(&format!(".{ending}")))
    }

    /// The same as [`constant`](Self::constant) of a head.
    pub fn head_constant(mut self, theirs: &str, values: Vec<f32>) -> Self {
        self.constants.push((theirs.to_owned(), values));
        self.ignore(theirs)
    }

    /// Those vectors, by the names to write.
    pub fn constants(&self) -> impl Iterator<Item = (&str, &[f32])> {
        let constants = self.constants.iter();
        constants.map(|(name, values)| (name.as_str(), values.as_slice()))
    }

    /// Where one of our parameters is.
    ///
    /// `None` when the table does not have it, which is a mistake in the table.
    pub fn source(&self, ours: &str) -> Option<Source> {
        if self.rows.is_empty() {
            return Some(Source {
                name: ours.to_owned(),
                others: Vec::new(),
                layout: Layout::SAME,
            });
        }
        let (pattern, numbers) = abstracted(ours);
        let row = self.rows.get(&pattern)?;
        let theirs = filled(&row.theirs, &numbers);
        let (name, mut others) = match row.is_base {
            false => (theirs, Vec::new()),
            true => {
                let others = self.other_prefixes.iter();
                let others = others.map(|prefix| format!("{prefix}{theirs}"));
                let others = others.chain((!self.prefix.is_empty()).then(|| theirs.clone()));
                (format!("{}{theirs}", self.prefix), others.collect())
            }
        };
        others.extend(row.others.iter().map(|other| filled(other, &numbers)));
        // Checkpoints that began in TensorFlow call a norm's parameters so.
        let legacy: Vec<String> = [&name]
            .into_iter()
            .chain(&others)
            .filter_map(|name| {
                let (module, parameter) = name.rsplit_once("LayerNorm.")?;
                match parameter {
                    "weight" => Some(format!("{module}LayerNorm.gamma")),
                    "bias" => Some(format!("{module}LayerNorm.beta")),
                    _ => None,
                }
            })
            .collect();
        others.extend(legacy);
        Some(Source {
            name,
            others,
            layout: row.layout,
        })
    }

    /// Whether a tensor that is no parameter may be there.
    pub fn is_ignored(&self, theirs: &str) -> bool {
        let prefixes = [self.prefix.as_str(), ""].into_iter();
        let prefixes = prefixes.chain(self.other_prefixes.iter().map(String::as_str));
        prefixes
            .filter_map(|prefix| theirs.strip_prefix(prefix))
            .map(|name| abstracted(name).0)
            .any(|name| {
                let is_within = |pattern: &String| {
                    let start = pattern.strip_suffix('*');
                    start.is_some_and(|start| name.starts_with(start))
                };
                self.ignored.contains(&name) || self.ignored.iter().any(is_within)
            })
    }
}
