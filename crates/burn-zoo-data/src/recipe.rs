//! Recipes: TOML files that users write, checked key by key, with values replaced on the command line.

use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;

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

/// Reads a recipe and applies overrides such as `("optimizer.learning_rate", "3e-4")`.
///
/// # Errors
///
/// When the file cannot be read or is not TOML, or a key is unknown, missing or has an impossible value.
pub fn read<T: DeserializeOwned>(
    path: &Path,
    overrides: &[(String, String)],
) -> Result<T, RecipeError> {
    let text = std::fs::read_to_string(path).map_err(|source| RecipeError::Unreadable {
        path: path.to_owned(),
        source,
    })?;
    parse(&text, overrides)
}

/// Parses a recipe and applies overrides.
///
/// # Errors
///
/// As [`read`].
pub fn parse<T: DeserializeOwned>(
    text: &str,
    overrides: &[(String, String)],
) -> Result<T, RecipeError> {
    let table: toml::Table = text
        .parse()
        .map_err(|error: toml::de::Error| RecipeError::Syntax(error.to_string()))?;
    let mut recipe = toml::Value::Table(table);
    for (key, value) in overrides {
        set(&mut recipe, key, value)?;
    }
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
        parse(text, &overrides).map_err(|error| error.to_string())
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
