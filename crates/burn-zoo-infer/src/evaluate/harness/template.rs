//! Jinja templates over a document, rendered as Python's Jinja does.

use std::collections::BTreeSet;

use minijinja::{
    Environment, Error, ErrorKind, State, UndefinedBehavior,
    syntax::SyntaxConfig,
    value::{Value, ValueKind, from_args},
};

/// The documents of a split, and the names of their fields.
pub(super) struct Documents {
    /// Objects, in which fields that only others have are null.
    pub(super) rows: Vec<Value>,
    fields: BTreeSet<String>,
}

impl Documents {
    pub(super) fn new(rows: Vec<serde_json::Map<String, serde_json::Value>>) -> Self {
        let fields: BTreeSet<String> = rows.iter().flat_map(|row| row.keys().cloned()).collect();
        let filled = rows.into_iter().map(|mut row| {
            for field in &fields {
                row.entry(field).or_insert(serde_json::Value::Null);
            }
            value_of(&serde_json::Value::Object(row))
        });
        Self {
            rows: filled.collect(),
            fields,
        }
    }

    /// Whether a document has a field of that name.
    pub(super) fn has_field(&self, name: &str) -> bool {
        self.fields.contains(name)
    }
}

/// A JSON value as one that templates read.
pub(super) fn value_of(json: &serde_json::Value) -> Value {
    match json {
        serde_json::Value::Null => Value::from(()),
        serde_json::Value::Bool(is_true) => Value::from(*is_true),
        serde_json::Value::Number(number) => match (number.as_i64(), number.as_u64()) {
            (Some(number), _) => Value::from(number),
            (_, Some(number)) => Value::from(number),
            _ => Value::from(number.as_f64().unwrap_or(f64::NAN)),
        },
        serde_json::Value::String(text) => Value::from(text),
        serde_json::Value::Array(items) => items.iter().map(value_of).collect(),
        serde_json::Value::Object(items) => {
            Value::from_pairs(items.iter().map(|(key, item)| (key, value_of(item))))
        }
    }
}

/// Renders templates.
pub(super) struct Templates(Environment<'static>);

impl Templates {
    pub(super) fn new() -> Self {
        let mut environment = Environment::new();
        environment.set_undefined_behavior(UndefinedBehavior::Strict);
        let syntax = SyntaxConfig::builder().keep_trailing_newline(true).build();
        environment.set_syntax(syntax.expect("the delimiters are the default ones"));
        environment.set_formatter(|output, _, value| Ok(output.write_str(&python_str(value))?));
        environment.set_unknown_method_callback(python_method);
        Self(environment)
    }

    /// What `template` gives for a document: the value of the field of that name, the value of a template
    /// that is one expression giving a list, else the rendered text.
    pub(super) fn value(
        &self,
        template: &str,
        documents: &Documents,
        document: &Value,
    ) -> Result<Value, Error> {
        if documents.has_field(template) {
            return document.get_attr(template);
        }
        if let Some(expression) = single_expression(template) {
            let value = self.0.compile_expression(expression)?.eval(document)?;
            if value.kind() == ValueKind::Seq {
                return Ok(value);
            }
        }
        Ok(Value::from(self.0.render_str(template, document)?))
    }

    /// The same as text.
    pub(super) fn text(
        &self,
        template: &str,
        documents: &Documents,
        document: &Value,
    ) -> Result<String, Error> {
        match documents.has_field(template) {
            true => Ok(python_str(&document.get_attr(template)?)),
            false => self.0.render_str(template, document),
        }
    }
}

/// The inside of `{{ … }}`, when a template is nothing else.
fn single_expression(template: &str) -> Option<&str> {
    let inside = template.trim().strip_prefix("{{")?.strip_suffix("}}")?;
    let is_one = !inside.contains("{{") && !inside.contains("}}");
    is_one.then(|| inside.trim_matches('-').trim())
}

/// A value as Python's `str` writes it.
pub(super) fn python_str(value: &Value) -> String {
    match value.kind() {
        ValueKind::String => value.to_string(),
        _ => python_repr(value),
    }
}

fn python_repr(value: &Value) -> String {
    let items = || value.try_iter().into_iter().flatten();
    match value.kind() {
        ValueKind::None => "None".to_owned(),
        ValueKind::Bool if value.is_true() => "True".to_owned(),
        ValueKind::Bool => "False".to_owned(),
        ValueKind::String => {
            let text = value.to_string();
            let quote = match text.contains('\'') && !text.contains('"') {
                true => '"',
                false => '\'',
            };
            let text = text
                .replace('\\', "\\\\")
                .replace('\n', "\\n")
                .replace('\r', "\\r")
                .replace('\t', "\\t")
                .replace(quote, &format!("\\{quote}"));
            format!("{quote}{text}{quote}")
        }
        ValueKind::Seq => {
            let items: Vec<String> = items().map(|item| python_repr(&item)).collect();
            format!("[{}]", items.join(", "))
        }
        ValueKind::Map => {
            let items: Vec<String> = items()
                .map(|key| {
                    let item = value.get_item(&key).unwrap_or_default();
                    format!("{}: {}", python_repr(&key), python_repr(&item))
                })
                .collect();
            format!("{{{}}}", items.join(", "))
        }
        _ => value.to_string(),
    }
}

/// The methods of Python's strings, lists and dictionaries that templates use.
fn python_method(
    _: &mut State,
    value: &Value,
    method: &str,
    arguments: &[Value],
) -> Result<Value, Error> {
    if let Some(text) = value.as_str() {
        return string_method(text, method, arguments);
    }
    match (value.kind(), method) {
        (ValueKind::Seq, "index") => {
            let (wanted,): (&Value,) = from_args(arguments)?;
            let position = value.try_iter()?.position(|item| item == *wanted);
            position.map(Value::from).ok_or_else(|| {
                Error::new(
                    ErrorKind::InvalidOperation,
                    "the list does not have the item",
                )
            })
        }
        (ValueKind::Map, "keys") => Ok(value.try_iter()?.collect()),
        (ValueKind::Map, "values") => value.try_iter()?.map(|key| value.get_item(&key)).collect(),
        (ValueKind::Map, "items") => value
            .try_iter()?
            .map(|key| Ok(Value::from(vec![key.clone(), value.get_item(&key)?])))
            .collect(),
        (ValueKind::Map, "get") => {
            let (key, default): (&Value, Option<Value>) = from_args(arguments)?;
            let found = value.get_item(key)?;
            Ok(match found.is_undefined() {
                true => default.unwrap_or(Value::from(())),
                false => found,
            })
        }
        _ => Err(Error::from(ErrorKind::UnknownMethod)),
    }
}

fn string_method(text: &str, method: &str, arguments: &[Value]) -> Result<Value, Error> {
    let capitalized = |word: &str| {
        let mut characters = word.chars();
        let first = characters
            .next()
            .map(|first| first.to_uppercase().to_string());
        first.unwrap_or_default() + &characters.as_str().to_lowercase()
    };
    let no_arguments = || from_args::<()>(arguments);
    let stripped = |start: bool, end: bool| -> Result<Value, Error> {
        let (characters,): (Option<&str>,) = from_args(arguments)?;
        let is_stripped = |c: char| characters.map_or(c.is_whitespace(), |set| set.contains(c));
        let text = if start {
            text.trim_start_matches(is_stripped)
        } else {
            text
        };
        let text = if end {
            text.trim_end_matches(is_stripped)
        } else {
            text
        };
        Ok(text.into())
    };
    Ok(match method {
        "strip" => stripped(true, true)?,
        "lstrip" => stripped(true, false)?,
        "rstrip" => stripped(false, true)?,
        "lower" => no_arguments().map(|()| text.to_lowercase().into())?,
        "upper" => no_arguments().map(|()| text.to_uppercase().into())?,
        "capitalize" => no_arguments().map(|()| capitalized(text).into())?,
        "replace" => {
            let (from, to): (&str, &str) = from_args(arguments)?;
            text.replace(from, to).into()
        }
        "startswith" => {
            let (start,): (&str,) = from_args(arguments)?;
            text.starts_with(start).into()
        }
        "endswith" => {
            let (end,): (&str,) = from_args(arguments)?;
            text.ends_with(end).into()
        }
        "split" => {
            let (separator,): (Option<&str>,) = from_args(arguments)?;
            match separator {
                Some(separator) => text.split(separator).map(Value::from).collect(),
                None => text.split_whitespace().map(Value::from).collect(),
            }
        }
        "join" => {
            let (parts,): (&Value,) = from_args(arguments)?;
            let parts: Vec<String> = parts.try_iter()?.map(|part| python_str(&part)).collect();
            parts.join(text).into()
        }
        _ => return Err(Error::from(ErrorKind::UnknownMethod)),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn document() -> Documents {
        let json = serde_json::json!([
            {
                "question": " Is it? ",
                "label": 1,
                "is_true": true,
                "choices": {"label": ["A", "B"], "text": ["it's", "no"]},
                "nothing": null,
            },
            {"only_here": 2},
        ]);
        Documents::new(serde_json::from_value(json).unwrap())
    }

    /// Jinja 3.1.6 with `StrictUndefined` and `keep_trailing_newline`: `from_string(template).render(**document)`.
    #[test]
    fn templates_render_as_in_python() {
        let documents = document();
        let templates = Templates::new();
        for (template, expected) in [
            ("question", " Is it? "),
            ("Q: {{question.strip()}}\n", "Q: Is it?\n"),
            ("{{is_true}} {{nothing}} {{label}}", "True None 1"),
            ("{{choices.text}}", "[\"it's\", 'no']"),
            (
                "{{choices}}",
                "{'label': ['A', 'B'], 'text': [\"it's\", 'no']}",
            ),
            ("{{choices.text[label]|upper}}", "NO"),
            (
                "{% for c in choices['text'] %}{{choices.label[loop.index0]}}. {{c}}\n{% endfor %}",
                "A. it's\nB. no\n",
            ),
            ("{{choices.label.index('B')}}", "1"),
            (
                "{{question.strip().lower().replace('?', '!').split(' ')|join('-')}}",
                "is-it!",
            ),
            ("{{ 'yes' if is_true else 'no' }}", "yes"),
            ("{{only_here}}", "None"),
            ("{{choices.keys()|list}}", "['label', 'text']"),
            (
                "{{choices.get('other', 3)}} {{', '.join(choices.text)}}",
                "3 it's, no",
            ),
        ] {
            let text = templates.text(template, &documents, &documents.rows[0]);
            assert_eq!(text.unwrap(), expected, "{template}");
        }
        for (template, expected) in [
            ("{{missing}}", "undefined"),
            ("{{question.swapcase()}}", "unknown method"),
            ("{{question|regex_replace('a', 'b')}}", "unknown filter"),
        ] {
            let error = templates.text(template, &documents, &documents.rows[0]);
            let error = error.unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
    }

    #[test]
    fn an_expression_can_give_a_list() {
        let documents = document();
        let templates = Templates::new();
        for (template, expected) in [
            ("{{choices.text}}", vec!["it's", "no"]),
            ("{{['a', question.strip()]}}", vec!["a", "Is it?"]),
        ] {
            let value = templates.value(template, &documents, &documents.rows[0]);
            assert_eq!(value.unwrap(), Value::from(expected));
        }
        let value = templates.value("{{label}}", &documents, &documents.rows[0]);
        assert_eq!(value.unwrap(), Value::from("1"));
    }
}
