//! Parameters chosen by their paths.

use burn::module::Module;
use burn_zoo_models::{names::kind, weights::for_each_parameter};
use std::collections::BTreeSet;

/// Whether a pattern means a parameter. `*` stands for any characters, dots included, and a pattern may start
/// at any component of the path: `embedding.*` and `bias` both mean parameters of `model.embedding.norm.bias`.
pub fn matches(pattern: &str, path: &str) -> bool {
    let starts = path.match_indices('.').map(|(dot, _)| dot + 1);
    std::iter::once(0)
        .chain(starts)
        .any(|start| is_glob_of(pattern.as_bytes(), &path.as_bytes()[start..]))
}

fn is_glob_of(pattern: &[u8], text: &[u8]) -> bool {
    match pattern.split_first() {
        None => text.is_empty(),
        Some((b'*', rest)) => (0..=text.len()).any(|skipped| is_glob_of(rest, &text[skipped..])),
        Some((wanted, rest)) => text
            .split_first()
            .is_some_and(|(found, text)| wanted == found && is_glob_of(rest, text)),
    }
}

/// A parameter's path in its module and its shape.
#[derive(Clone, Debug)]
pub struct Parameter {
    /// Such as `stack.blocks.0.attention.query.weight`.
    pub path: String,
    /// Its shape.
    pub shape: Vec<usize>,
}

/// The float parameters of a module.
pub fn list<M: Module>(module: &M) -> Vec<Parameter> {
    let mut parameters = Vec::new();
    for_each_parameter(module, |path, shape| {
        parameters.push(Parameter { path, shape });
    });
    parameters
}

/// A pattern means no parameter of the model.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("the pattern `{pattern}` matches no parameter; there are {}", there.join(", "))]
pub struct NoSuchParameter {
    /// The pattern.
    pub pattern: String,
    /// The paths that there are, with `*` for numbers.
    pub there: Vec<String>,
}

/// Refuses the first pattern that means none of the parameters.
pub fn check_patterns(
    patterns: &[String],
    parameters: &[Parameter],
) -> Result<(), NoSuchParameter> {
    let is_unmatched = |pattern: &&String| {
        !parameters
            .iter()
            .any(|parameter| matches(pattern, &parameter.path))
    };
    match patterns.iter().find(is_unmatched) {
        None => Ok(()),
        Some(pattern) => Err(NoSuchParameter {
            pattern: pattern.clone(),
            there: kinds(parameters),
        }),
    }
}

fn kinds(parameters: &[Parameter]) -> Vec<String> {
    let kinds: BTreeSet<String> = parameters
        .iter()
        .map(|parameter| kind(&parameter.path))
        .collect();
    kinds.into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_starts_at_any_component_and_ends_at_the_last() {
        let path = "model.stack.blocks.0.attention.query.weight";
        for pattern in [
            path,
            "stack.*",
            "blocks.*.weight",
            "*.query.*",
            "weight",
            "*",
            "query.weight",
        ] {
            assert!(matches(pattern, path), "{pattern}");
        }
        for pattern in [
            "stack",
            "uery.weight",
            "query",
            "blocks.*.bias",
            "",
            "model",
        ] {
            assert!(!matches(pattern, path), "{pattern}");
        }
    }
}
