//! Training on burn-train's learner: recipes, objectives, optimiser, resume.
//!
//! Three ways in, from most to least ready-made:
//!
//! - [`run::train`] takes a [`Recipe`] and a text and leaves a model directory;
//! - [`trainer::fit`] takes any model, also one composed by hand, an
//!   [`Objective`](objective::Objective), and data;
//! - [`Trainee`](objective::Trainee) and [`StepLoop`](step_loop::StepLoop) are a `TrainStep` and a
//!   strategy for burn-train's `SupervisedTraining`.

mod adamw;
pub mod adaptation;
pub mod average;
pub mod checkpoint;
pub mod flops;
pub mod history;
mod labelled;
mod language;
pub mod lines;
pub mod lock;
pub mod memory;
pub mod metrics;
pub mod objective;
pub mod optimizer;
pub mod parameters;
pub mod plot;
pub mod precision;
pub mod recipe;
pub mod run;
pub mod schedule;
pub mod step_loop;
mod task;
mod terminal;
pub mod trainer;

// burn-train's own, for callers that need nothing else of it.
pub use burn_train::{Interrupter, Learner, TrainOutput};
pub use recipe::Recipe;
