//! `burn-zoo models`.

use comfy_table::{CellAlignment, Table, presets};
use serde::Serialize;

use super::{End, Result, print_json};
use crate::models::{
    family::{families, find_preset},
    summary::{Part, Summary, tree},
};

#[derive(clap::Args)]
pub struct Arguments {
    /// Draw this one as a tree of its parts.
    #[arg(value_name = "NAME")]
    name: Option<String>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// One model, whole.
#[derive(Serialize)]
struct Drawing {
    #[serde(flatten)]
    summary: Summary,
    tree: Part,
}

pub fn run(arguments: &Arguments) -> Result<End> {
    match &arguments.name {
        Some(name) => draw(name, arguments.json)?,
        None => list(arguments.json)?,
    }
    Ok(End::Done)
}

fn list(json: bool) -> Result<()> {
    let mut summaries = Vec::new();
    for family in families() {
        for preset in family.presets() {
            summaries.push(Summary::new(&family, &preset)?);
        }
    }
    if json {
        return print_json(&summaries);
    }
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header([
        "NAME",
        "FAMILY",
        "PARAMETERS",
        "PUBLISHED",
        "DIFFERENCE",
        "LAYERS",
        "WIDTH",
        "HEADS",
        "CONTEXT",
        "F32",
        "BF16",
        "ADAMW",
    ]);
    for index in 2..12 {
        if let Some(column) = table.column_mut(index) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    let mut notes = Vec::new();
    for summary in &summaries {
        let mark = match &summary.note {
            Some(note) => {
                notes.push(format!("  [{}] {}: {note}", notes.len() + 1, summary.name));
                format!(" [{}]", notes.len())
            }
            None => String::new(),
        };
        let difference = summary
            .difference_percent
            .map_or("-".to_owned(), |percent| format!("{percent:+.2} %"));
        table.add_row([
            summary.name.clone(),
            summary.family.clone(),
            grouped(summary.parameters),
            summary.published_parameters.map_or("-".to_owned(), short),
            format!("{difference}{mark}"),
            summary.layers.to_string(),
            summary.d_model.to_string(),
            summary.heads.to_string(),
            summary.context_length.to_string(),
            bytes(summary.weight_bytes_f32),
            bytes(summary.weight_bytes_bf16),
            bytes(summary.training_bytes_adamw),
        ]);
    }
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    println!("{}\n", table.trim_fmt());
    println!("{}\n", notes.join("\n"));
    println!(
        "F32 and BF16 are the weights; ADAMW is weights, gradients and two moments in f32, without\n\
         activations. `burn-zoo models NAME` draws one."
    );
    Ok(())
}

fn draw(name: &str, json: bool) -> Result<()> {
    let Some((family, preset)) = find_preset(name) else {
        return Err(unknown(name).into());
    };
    let summary = Summary::new(&family, &preset)?;
    let tree = tree(name, &preset.architecture()?.transformer);
    if json {
        return print_json(&Drawing { summary, tree });
    }
    println!("{name}: {}", summary.family);
    println!("{} parameters", grouped(summary.parameters));
    if summary.active_parameters != summary.parameters {
        println!(
            "{} of them for each token",
            grouped(summary.active_parameters)
        );
    }
    if let Some(note) = &summary.note {
        println!("{note}");
    }
    println!();
    let lines = lines(&tree.parts, "");
    let width = lines.iter().map(|line| line.label.chars().count()).max();
    let width = width.unwrap_or(0);
    for Line {
        label,
        parameters,
        description,
    } in lines
    {
        let line = format!("{label:width$}  {parameters:>19}  {description}");
        println!("{}", line.trim_end());
    }
    Ok(())
}

struct Line {
    label: String,
    parameters: String,
    description: String,
}

fn lines(parts: &[Part], indent: &str) -> Vec<Line> {
    let mut all = Vec::new();
    for (index, part) in parts.iter().enumerate() {
        let is_last = index + 1 == parts.len();
        let (branch, below) = if is_last {
            ("└─ ", "   ")
        } else {
            ("├─ ", "│  ")
        };
        let shape = part
            .shape
            .as_ref()
            .map_or(String::new(), |shape| format!(" {shape:?}"));
        let times = match part.count {
            1 => String::new(),
            count => format!("{count} × "),
        };
        all.push(Line {
            label: format!("{indent}{branch}{}{shape}", part.name),
            parameters: format!("{times}{}", grouped(part.parameters)),
            description: part.description.clone().unwrap_or_default(),
        });
        all.extend(lines(&part.parts, &format!("{indent}{below}")));
    }
    all
}

/// Names that are close to what was asked for.
fn unknown(name: &str) -> String {
    let all: Vec<&str> = families()
        .iter()
        .flat_map(|family| family.presets())
        .map(|preset| preset.name)
        .collect();
    let start = name.split('-').next().unwrap_or(name);
    let close: Vec<&str> = all
        .iter()
        .copied()
        .filter(|known| known.starts_with(start))
        .collect();
    match close.is_empty() {
        true => format!("there is no model `{name}`: `burn-zoo models` lists them"),
        false => format!("there is no model `{name}`: there are {}", close.join(", ")),
    }
}

/// `1234567` as `1,234,567`.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// `1750000000000` as `1.75T`.
fn short(number: u64) -> String {
    let scaled = |unit: f64, suffix: &str| {
        let value = number as f64 / unit;
        let text = format!("{value:.3}");
        let text = text.trim_end_matches('0').trim_end_matches('.');
        format!("{text}{suffix}")
    };
    match number {
        0..1_000_000 => number.to_string(),
        1_000_000..1_000_000_000 => scaled(1e6, "M"),
        1_000_000_000..1_000_000_000_000 => scaled(1e9, "B"),
        _ => scaled(1e12, "T"),
    }
}

fn bytes(number: u64) -> String {
    let value = number as f64;
    match number {
        0..1_000_000_000 => format!("{:.0} MB", value / 1e6),
        1_000_000_000..1_000_000_000_000 => format!("{:.1} GB", value / 1e9),
        _ => format!("{:.2} TB", value / 1e12),
    }
}
