//! Which parameters of a model learn, and how what they learned is saved.

use std::path::Path;

use burn::module::{Module, ModuleMapper, Param};
use burn::tensor::Tensor;
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

/// Has only those parameters of `model` learn that the adaptation says. Returns the paths of those that learn whole.
///
/// # Errors
///
/// When a pattern matches nothing.
pub fn adapt(
    adaptation: &Adaptation,
    mut model: Transformer,
    architecture: &Architecture,
    has_new_head: bool,
) -> Result<(Transformer, Vec<String>), AdaptationError> {
    let is_head = |path: &str| path.starts_with("head.");
    let learns: Box<dyn Fn(&str) -> bool> = match adaptation {
        Adaptation::Full => Box::new(|_| true),
        Adaptation::Head => Box::new(is_head),
        Adaptation::Frozen(patterns) => {
            parameters::check_patterns(patterns, &parameters::list(&model))?;
            let patterns = patterns.clone();
            Box::new(move |path| !patterns.iter().any(|pattern| matches(pattern, path)))
        }
        Adaptation::Lora(lora) => {
            adapter::add(&mut model, architecture, &lora.config(), &lora.targets)?;
            Box::new(move |path| path.contains(".lora.") || has_new_head && is_head(path))
        }
    };
    let mut whole = Vec::new();
    for_each_parameter(&model, |path, _| {
        if learns(&path) && !path.contains(".lora.") {
            whole.push(path);
        }
    });
    Ok((freeze(model, |path| !learns(path)), whole))
}

/// Stops the parameters of some paths from learning. Their dropout goes on.
fn freeze(model: Transformer, is_frozen: impl Fn(&str) -> bool) -> Transformer {
    struct Freezer<F>(Vec<String>, F);
    impl<F: Fn(&str) -> bool> ModuleMapper for Freezer<F> {
        fn enter_module(&mut self, name: &str, _: &str) {
            self.0.push(name.to_owned());
        }
        fn exit_module(&mut self, _: &str, _: &str) {
            self.0.pop();
        }
        fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
            match (self.1)(&self.0.join(".")) {
                true => param.set_require_grad(false),
                false => param,
            }
        }
    }
    model.map(&mut Freezer(Vec::new(), is_frozen))
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
