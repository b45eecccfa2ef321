//! Recipes: TOML files that users write, checked key by key, with values replaced on the command line.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;

/// What makes a recipe unusable.
#[derive(Debug, thiserror::Error)]
pub enum RecipeError {
    /// The file cannot be read.
    #[error("cannot read recipe {}: {source}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the operating system says.
        source: std::io::Error,
    },
    /// TOML cannot hold a value.
    #[error("the recipe cannot be written: {0}")]
    Unwritable(String),
    /// The text is not TOML.
    #[error("the recipe is not TOML: {0}")]
    Syntax(String),
    /// A run is resumed with another recipe.
    #[error(
        "the run was started with another recipe: {}; resume it as it was, or start another run",
        listed(.0)
    )]
    Changed(Vec<Difference>),
    /// A key is unknown, missing, or has an impossible value.
    #[error("recipe key `{key}`: {problem}")]
    Key {
        /// The key's full name, such as `optimizer.learning_rate`.
        key: String,
        /// What is wrong and what would be right.
        problem: String,
    },
}

impl RecipeError {
    /// A value that cannot be, by the key's full name.
    pub fn key(key: impl Into<String>, problem: impl Into<String>) -> Self {
        Self::Key {
            key: key.into(),
            problem: problem.into(),
        }
    }
}

/// A key that has another value in another recipe.
#[derive(Clone, Debug, PartialEq)]
pub struct Difference {
    /// The key's full name.
    pub key: String,
    /// What it was.
    pub old: Option<Value>,
    /// What it is.
    pub new: Option<Value>,
}

impl std::fmt::Display for Difference {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        let show = |value: &Option<Value>| match value {
            Some(value) => value.to_string(),
            None => "not there".to_owned(),
        };
        let (old, new) = (show(&self.old), show(&self.new));
        write!(f, "`{}` was {old}, now {new}", self.key)
    }
}

/// Differences as one line.
pub(crate) fn listed(differences: &[Difference]) -> String {
    let lines: Vec<String> = differences.iter().map(Difference::to_string).collect();
    lines.join(", ")
}

/// The keys at which two recipes differ, list items by their numbers from 0.
///
/// # Errors
///
/// When one of them holds a value that cannot be written, such as a path that is not UTF-8.
pub fn differences(
    old: &impl Serialize,
    new: &impl Serialize,
) -> Result<Vec<Difference>, RecipeError> {
    let (old, new) = (leaves(old)?, leaves(new)?);
    let keys: BTreeSet<&String> = old.keys().chain(new.keys()).collect();
    let differences = keys
        .into_iter()
        .filter(|key| old.get(*key) != new.get(*key))
        .map(|key| Difference {
            key: key.clone(),
            old: old.get(key).cloned(),
            new: new.get(key).cloned(),
        });
    Ok(differences.collect())
}

/// All values by their full keys.
fn leaves(recipe: &impl Serialize) -> Result<BTreeMap<String, Value>, RecipeError> {
    fn collect(key: &str, value: Value, leaves: &mut BTreeMap<String, Value>) {
        let below = |name: &str| match key {
            "" => name.to_owned(),
            key => format!("{key}.{name}"),
        };
        match value {
            Value::Object(fields) if !fields.is_empty() => {
                for (name, value) in fields {
                    collect(&below(&name), value, leaves);
                }
            }
            Value::Array(items) if !items.is_empty() => {
                for (index, item) in items.into_iter().enumerate() {
                    collect(&below(&index.to_string()), item, leaves);
                }
            }
            value => {
                leaves.insert(key.to_owned(), value);
            }
        }
    }
    let value = serde_json::to_value(recipe);
    let value = value.map_err(|error| RecipeError::Unwritable(error.to_string()))?;
    let mut leaves = BTreeMap::new();
    collect("", value, &mut leaves);
    Ok(leaves)
}

/// Reads the text of a recipe.
///
/// # Errors
///
/// When the file cannot be read.
pub fn read(path: &Path) -> Result<String, RecipeError> {
    std::fs::read_to_string(path).map_err(|source| RecipeError::Unreadable {
        path: path.to_owned(),
        source,
    })
}

/// Parses a recipe and applies overrides such as `("optimizer.learning_rate", "3e-4")`. Short forms are spelled
/// out by `spell_out`, before overrides and after.
///
/// # Errors
///
/// When the text is not TOML, or a key is unknown, missing or has an impossible value.
pub fn parse<T: DeserializeOwned>(
    text: &str,
    overrides: &[(String, String)],
    spell_out: impl Fn(&mut toml::Value),
) -> Result<T, RecipeError> {
    let table: toml::Table = text
        .parse()
        .map_err(|error: toml::de::Error| RecipeError::Syntax(error.to_string()))?;
    let mut recipe = toml::Value::Table(table);
    spell_out(&mut recipe);
    for (key, value) in overrides {
        set(&mut recipe, key, value)?;
    }
    spell_out(&mut recipe);
    serde_path_to_error::deserialize(recipe).map_err(|error| {
        let path = error.path().to_string();
        let problem = error.into_inner().message().to_owned();
        RecipeError::key(full_key(path, &problem), problem)
    })
}

/// Sets a dotted key, where a number is an item of a list, from 0. The value is TOML where it parses as such,
/// else a string.
fn set(recipe: &mut toml::Value, key: &str, value: &str) -> Result<(), RecipeError> {
    let (mut place, mut path) = (recipe, "");
    for name in key.split('.') {
        place = match place {
            toml::Value::Table(table) => table
                .entry(name)
                .or_insert_with(|| toml::Value::Table(toml::Table::new())),
            toml::Value::Array(items) => {
                let n_items = items.len();
                let item = name
                    .parse()
                    .ok()
                    .and_then(|index: usize| items.get_mut(index));
                item.ok_or_else(|| {
                    let problem = format!("`{path}` has {n_items} items, counted from 0");
                    RecipeError::key(key, problem)
                })?
            }
            _ => {
                let problem = format!("`{path}` is a value, it has no keys of its own");
                return Err(RecipeError::key(key, problem));
            }
        };
        path = name;
    }
    *place = match format!("value = {value}").parse::<toml::Table>() {
        Ok(mut parsed) => parsed.remove("value").expect("the key was just written"),
        Err(_) => toml::Value::String(value.to_owned()),
    };
    Ok(())
}

/// Serde gives the path of the struct that refuses a key; the key itself is in the message.
fn full_key(path: String, problem: &str) -> String {
    let named = ["unknown field `", "missing field `"]
        .iter()
        .find_map(|prefix| problem.strip_prefix(prefix)?.split('`').next());
    match named {
        Some(name) if path == "." => name.to_owned(),
        Some(name) if path != name && !path.ends_with(&format!(".{name}")) => {
            format!("{path}.{name}")
        }
        _ => path,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(key: &str, value: &str) -> Result<toml::Table, String> {
        let overrides = [(key.to_owned(), value.to_owned())];
        let text = "size = 3\n[[sources]]\npath = 'a'\n[[sources]]\npath = 'b'";
        parse(text, &overrides, |_| ()).map_err(|error| error.to_string())
    }

    #[test]
    fn items_of_lists_and_new_tables_are_set() {
        let table = parsed("sources.1.path", "a/c.txt").unwrap();
        assert_eq!(table["sources"][1]["path"].as_str(), Some("a/c.txt"));
        assert_eq!(table["sources"][0]["path"].as_str(), Some("a"));
        let table = parsed("pack.splits.test", "0.5").unwrap();
        assert_eq!(table["pack"]["splits"]["test"].as_float(), Some(0.5));
    }

    #[test]
    fn keys_below_values_and_items_that_are_not_there_are_refused() {
        assert!(
            parsed("size.of.it", "1")
                .unwrap_err()
                .contains("`size` is a value")
        );
        assert!(
            parsed("sources.2.path", "c")
                .unwrap_err()
                .contains("2 items")
        );
        assert!(parsed("sources.x", "c").unwrap_err().contains("2 items"));
    }
}
