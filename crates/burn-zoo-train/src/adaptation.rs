//! Which parameters of a model learn, and how what they learned is saved.

use std::collections::BTreeSet;
use std::path::Path;

use burn::module::{Module, ParamGroup};
use burn_zoo_models::{
    adapter::{self, AdapterError, Saved},
    directory::{self, DirectoryError},
    family::Architecture,
    weights::for_each_parameter,
};
use burn_zoo_nn::Transformer;

use crate::{
    parameters::{self, NoSuchParameter, matches},
    recipe::Adaptation,
};

/// What makes an adaptation impossible.
#[derive(Debug, thiserror::Error)]
pub enum AdaptationError {
    /// A pattern means no parameter.
    #[error("recipe key `adaptation.frozen`: {0}")]
    Frozen(#[from] NoSuchParameter),
    /// There is no model to put adapters on.
    #[error("recipe key `adaptation.lora`: is for a model that is there already: give model.path")]
    NoBase,
    /// An adapter has no place.
    #[error("recipe key `adaptation.lora.targets`: {0}")]
    Adapter(#[from] AdapterError),
}

/// Has only those parameters of `model` learn that the adaptation says; those at the paths `new` learn beside adapters
/// and with the head. Returns the paths of those that learn whole.
///
/// # Errors
///
/// When a pattern matches nothing.
pub fn adapt(
    adaptation: &Adaptation,
    mut model: Transformer,
    architecture: &Architecture,
    new: &BTreeSet<String>,
) -> Result<(Transformer, Vec<String>), AdaptationError> {
    let learns: Box<dyn Fn(&str) -> bool> = match adaptation {
        Adaptation::Full => Box::new(|_| true),
        Adaptation::Head => Box::new(|path| is_head(path) || new.contains(path)),
        Adaptation::Frozen(patterns) => {
            parameters::check_patterns(patterns, &parameters::list(&model))?;
            let patterns = patterns.clone();
            Box::new(move |path| !patterns.iter().any(|pattern| matches(pattern, path)))
        }
        Adaptation::Lora(lora) => {
            adapter::add(&mut model, architecture, &lora.config(), &lora.targets)?;
            Box::new(|path| path.contains(".lora.") || new.contains(path))
        }
    };
    let (mut whole, mut frozen) = (Vec::new(), Vec::new());
    for_each_parameter(&model, |path, _| match learns(&path) {
        true if path.contains(".lora.") => {}
        true => whole.push(path),
        false => frozen.push(path),
    });
    // Their dropout goes on.
    let model = match frozen.is_empty() {
        true => model,
        false => model.set_require_grad_group(ParamGroup::from_paths(frozen), false),
    };
    Ok((model, whole))
}

/// Whether a parameter is the head's, by its path.
pub fn is_head(path: &str) -> bool {
    path.starts_with("head.")
}

/// Leaves what was learned: adapters alone, or the whole model.
///
/// # Errors
///
/// When a file cannot be written.
pub fn save(
    adaptation: &Adaptation,
    model: &Transformer,
    architecture: &Architecture,
    base: Option<&Path>,
    whole: &[String],
    out: &Path,
) -> Result<(), DirectoryError> {
    match (adaptation, base) {
        (Adaptation::Lora(lora), Some(base)) => {
            let saved = Saved {
                config: &lora.config(),
                base,
                trained: whole,
            };
            adapter::save(model, architecture, &saved, out)
        }
        _ => directory::save(model, architecture, out),
    }
}
