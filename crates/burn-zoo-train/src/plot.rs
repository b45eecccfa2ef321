//! Losses and learning rates of runs, drawn as SVG.

use std::ops::Range;

use plotters::coord::Shift;
use plotters::prelude::*;

use crate::step_loop::Record;

/// What is drawn of a run.
#[derive(Clone, Debug, Default)]
pub struct Curves {
    name: String,
    train: Vec<(f64, f64)>,
    valid: Vec<(f64, f64)>,
    learning_rate: Vec<(f64, f64)>,
}

/// How many points a curve has at most. Each is the mean of as many steps.
const POINTS: usize = 200;

impl Curves {
    /// The curves of a run's history.
    pub fn new(name: impl Into<String>, records: &[Record]) -> Self {
        let mut curves = Self {
            name: name.into(),
            ..Self::default()
        };
        for record in records {
            match *record {
                Record::Train {
                    step,
                    loss,
                    learning_rate,
                    ..
                } => {
                    curves.train.push((step as f64, loss));
                    curves.learning_rate.push((step as f64, learning_rate));
                }
                Record::Valid {
                    step, valid_loss, ..
                } => curves.valid.push((step as f64, valid_loss)),
                Record::Sample { .. } => {}
            }
        }
        curves.train = thinned(&curves.train);
        curves.learning_rate = thinned(&curves.learning_rate);
        curves
    }
}

/// The means of up to [`POINTS`] stretches of equal length.
fn thinned(points: &[(f64, f64)]) -> Vec<(f64, f64)> {
    let length = points.len().div_ceil(POINTS).max(1);
    let mean = |stretch: &[(f64, f64)]| {
        let (x, y) = stretch
            .iter()
            .fold((0.0, 0.0), |(x, y), point| (x + point.0, y + point.1));
        (x / stretch.len() as f64, y / stretch.len() as f64)
    };
    points.chunks(length).map(mean).collect()
}

type DrawError = DrawingAreaErrorKind<std::io::Error>;

/// Draws the training loss as a line, the validation loss as a line with points, and the learning rate below.
/// Nothing where there is no step to draw.
pub fn svg(runs: &[Curves]) -> Option<String> {
    if runs.iter().all(|run| run.train.is_empty()) {
        return None;
    }
    let mut svg = String::new();
    let height = 560 + 18 * runs.len() as u32;
    draw(
        runs,
        SVGBackend::with_string(&mut svg, (900, height)).into_drawing_area(),
    )
    .expect("drawing into memory does not fail");
    Some(svg)
}

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

fn draw(runs: &[Curves], area: Area) -> Result<(), DrawError> {
    area.fill(&WHITE)?;
    let (loss, learning_rate) = area.split_vertically(area.dim_in_pixel().1 - 180);
    draw_losses(runs, &loss)?;
    draw_rates(runs, &learning_rate)?;
    area.present()
}

fn color(index: usize) -> RGBColor {
    // Okabe and Ito's, which the colour-blind can tell apart.
    const COLORS: [RGBColor; 7] = [
        RGBColor(0, 114, 178),
        RGBColor(213, 94, 0),
        RGBColor(0, 158, 115),
        RGBColor(204, 121, 167),
        RGBColor(230, 159, 0),
        RGBColor(86, 180, 233),
        RGBColor(0, 0, 0),
    ];
    COLORS[index % COLORS.len()]
}

fn draw_losses(runs: &[Curves], area: &Area) -> Result<(), DrawError> {
    let points = || {
        runs.iter()
            .flat_map(|run| run.train.iter().chain(&run.valid))
    };
    let mut chart = ChartBuilder::on(area)
        .caption("loss (nats)", ("sans-serif", 18))
        .margin(12)
        .x_label_area_size(24)
        .y_label_area_size(70)
        .build_cartesian_2d(steps(runs), padded(points().map(|point| point.1)))?;
    chart
        .configure_mesh()
        .light_line_style(TRANSPARENT)
        .bold_line_style(BLACK.mix(0.1))
        .x_label_formatter(&|step| format!("{step}"))
        .y_label_formatter(&|loss| number(*loss))
        .draw()?;
    for (index, run) in runs.iter().enumerate() {
        let color = color(index);
        let faint = color.mix(0.45).stroke_width(1);
        let strong = color.stroke_width(2);
        chart
            .draw_series(LineSeries::new(run.train.iter().copied(), faint))?
            .label(format!("{} training", run.name))
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], faint));
        if !run.valid.is_empty() {
            chart
                .draw_series(LineSeries::new(run.valid.iter().copied(), strong))?
                .label(format!("{} validation", run.name))
                .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], strong));
            let dots = run.valid.iter();
            chart.draw_series(dots.map(|&point| Circle::new(point, 3, color.filled())))?;
        }
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperRight)
        .background_style(WHITE.mix(0.8))
        .label_font(("sans-serif", 13))
        .draw()
}

fn draw_rates(runs: &[Curves], area: &Area) -> Result<(), DrawError> {
    let points = || runs.iter().flat_map(|run| &run.learning_rate);
    let highest = points().map(|point| point.1).fold(0.0, f64::max);
    let mut chart = ChartBuilder::on(area)
        .caption("learning rate", ("sans-serif", 14))
        .margin(12)
        .x_label_area_size(36)
        .y_label_area_size(70)
        .build_cartesian_2d(steps(runs), 0.0..(highest * 1.05).max(f64::MIN_POSITIVE))?;
    chart
        .configure_mesh()
        .light_line_style(TRANSPARENT)
        .bold_line_style(BLACK.mix(0.1))
        .y_labels(4)
        .x_desc("step")
        .x_label_formatter(&|step| format!("{step}"))
        .y_label_formatter(&|rate| number(*rate))
        .draw()?;
    for (index, run) in runs.iter().enumerate() {
        let line = color(index).stroke_width(1);
        chart.draw_series(LineSeries::new(run.learning_rate.iter().copied(), line))?;
    }
    Ok(())
}

fn steps(runs: &[Curves]) -> Range<f64> {
    let last = |points: &Vec<(f64, f64)>| points.last().map_or(1.0, |point| point.0);
    let ends = runs
        .iter()
        .flat_map(|run| [last(&run.train), last(&run.valid)]);
    0.0..ends.fold(1.0, f64::max)
}

/// From the lowest to the highest value, and a little more.
fn padded(values: impl Iterator<Item = f64> + Clone) -> Range<f64> {
    let (low, high) = values.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), value| {
        (low.min(value), high.max(value))
    });
    let margin = ((high - low) * 0.05).max(1e-3);
    low - margin..high + margin
}

/// Three digits, with an exponent where that is shorter.
fn number(value: f64) -> String {
    match value.abs() {
        0.0 => "0".to_owned(),
        small if small < 0.01 => format!("{value:.1e}"),
        _ => format!("{value:.2}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_history_is_drawn_by_its_means() {
        let step = |step: usize| Record::Train {
            step,
            loss: if step.is_multiple_of(2) { 1.0 } else { 3.0 },
            learning_rate: 0.1,
            seconds: 0.0,
        };
        let valid = Record::Valid {
            step: 800,
            valid_loss: 2.5,
            valid_accuracy: None,
        };
        let records: Vec<Record> = (1..=800).map(step).chain([valid]).collect();
        let curves = Curves::new("<long> & wide", &records);
        // Four steps a point, their losses 3, 1, 3, 1.
        assert_eq!(curves.train.len(), POINTS);
        assert!(curves.train.iter().all(|point| point.1 == 2.0));
        assert_eq!(curves.train[0].0, 2.5);
        let svg = svg(&[curves]).unwrap();
        assert!(svg.contains("&lt;long&gt; &amp; wide validation"), "{svg}");
        assert!(svg.contains("learning rate") && svg.ends_with("</svg>\n"));
    }

    #[test]
    fn without_steps_there_is_nothing_to_draw() {
        assert_eq!(svg(&[Curves::new("none", &[])]), None);
    }
}
