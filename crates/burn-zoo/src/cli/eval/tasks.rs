//! `burn-zoo eval tasks`.

use std::path::PathBuf;

use super::{Output, Result, ScorerArguments, Sheet, number};
use crate::infer::evaluate::harness::{RunConfig, Task, TaskResult};

#[derive(clap::Args)]
pub struct Arguments {
    #[command(flatten)]
    scorer: ScorerArguments,
    /// YAML files of tasks; paths of documents in them are relative to the file.
    #[arg(value_name = "TASK.yaml", required = true)]
    tasks: Vec<PathBuf>,
    /// Show so many examples, except where a task says 0 [default: what the task says]
    #[arg(long, value_name = "K")]
    num_fewshot: Option<usize>,
    /// Ask about the first N documents only
    #[arg(long, value_name = "N")]
    limit: Option<usize>,
    /// Decides which examples are shown, as the harness's fewshot seed does
    #[arg(long, value_name = "S", default_value_t = RunConfig::default().seed)]
    seed: u64,
    #[command(flatten)]
    output: Output,
}

pub fn run(arguments: &Arguments) -> Result<()> {
    // All are read before the model is, so that a mistake in the last shows at once.
    let tasks = arguments
        .tasks
        .iter()
        .map(|path| Task::load(path))
        .collect::<std::result::Result<Vec<Task>, _>>()?;
    let scorer = arguments.scorer.load()?;
    let config = RunConfig {
        num_fewshot: arguments.num_fewshot,
        limit: arguments.limit,
        seed: arguments.seed,
    };
    let mut results: Vec<TaskResult> = Vec::new();
    for task in &tasks {
        results.push(task.run(&scorer, config)?);
    }
    let mut sheet = Sheet::new(["TASK", "DOCUMENTS", "SHOTS", "METRIC", "VALUE", "ERROR"]);
    for result in &results {
        for metric in &result.metrics {
            let arrow = if metric.higher_is_better {
                "↑"
            } else {
                "↓"
            };
            let error = metric.standard_error;
            sheet.row([
                result.task.clone(),
                result.n_documents.to_string(),
                result.n_shot.to_string(),
                format!("{} {arrow}", metric.metric.name()),
                number(metric.value),
                error.map_or(String::new(), |error| format!("± {}", number(error))),
            ]);
        }
    }
    arguments.output.print(&results, &[sheet])
}
