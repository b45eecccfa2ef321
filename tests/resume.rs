//! Interrupting and resuming. Alone in its process, because burn's generator of dropout belongs to the
//! device, and a training beside this one would draw from it.

mod common;

use std::sync::Arc;

use burn_train::Interrupter;
use burn_zoo::{
    backend::{FoundDevice, Hardware},
    data::windows::Splits,
    models::gpt::GptConfig,
    nn::init,
    train::{
        checkpoint::RunState,
        objective::LanguageModeling,
        step_loop::{End, Record},
        trainer::{Session, fit},
    },
};
use common::{
    assert_close, devices,
    training::{MODEL, config, model, own_tokens, parameters, recorder, train_losses, windows},
};

/// Interrupted twice, once before the first evaluation, with dropout, accumulation, and the schedule
/// half-way: the losses and the parameters are those of a run that was left alone, bit for bit on
/// processors.
#[test]
fn a_resumed_run_is_the_unbroken_run() {
    let (splits, vocab_size) = own_tokens();
    for found in devices() {
        check(&found, &splits, vocab_size);
    }
}

fn check(found: &FoundDevice, splits: &Splits, vocab_size: usize) {
    let device = found.device.clone();
    let mut config = config(40);
    config.training.accumulation = 2;
    config.training.eval_interval = 15;
    let sizes = GptConfig {
        dropout: 0.2,
        ..MODEL
    };

    let unbroken = tempfile::tempdir().unwrap();
    let (expected, on_record) = recorder();
    let session = Session {
        folder: Some(unbroken.path().to_owned()),
        on_record,
        ..Session::default()
    };
    let expected_run = fit(
        model(&sizes, vocab_size, &device),
        LanguageModeling,
        &windows(splits, &config),
        &config,
        &device,
        session,
    )
    .unwrap();

    let broken = tempfile::tempdir().unwrap();
    let (records, on_record) = recorder();
    let mut resume = false;
    let mut last = None;
    for stop_at in [9, 22, usize::MAX] {
        let interrupter = Interrupter::new();
        let handle = interrupter.clone();
        let record = on_record.clone();
        let session = Session {
            folder: Some(broken.path().to_owned()),
            resume,
            interrupter,
            on_record: Arc::new(move |event| {
                if matches!(event, Record::Train { step, .. } if step == stop_at) {
                    handle.stop(None);
                }
                record(event);
            }),
            ..Session::default()
        };
        // Another start, which the checkpoint must replace.
        init::seed(1234);
        let start = sizes.transformer(vocab_size).unwrap().init(&device);
        let start = if resume {
            start
        } else {
            model(&sizes, vocab_size, &device)
        };
        let fitted = fit(
            start,
            LanguageModeling,
            &windows(splits, &config),
            &config,
            &device,
            session,
        )
        .unwrap();
        let expected_end = if stop_at == usize::MAX {
            End::Finished
        } else {
            End::Interrupted
        };
        assert_eq!(fitted.outcome.end, expected_end);
        last = Some(fitted);
        resume = true;
    }
    let last = last.expect("the loop ran");
    // A GPU may sum in another order from one run to the next.
    let tolerance = match found.hardware {
        Hardware::Cpu => 0.0,
        Hardware::Gpu | Hardware::SoftwareGpu => 1e-4,
    };
    let compare = |what: &str, found_values: &[f64], expected: &[f64]| {
        let what = format!("{what} on {}", found.name);
        assert_close(found_values, expected, tolerance, &what);
    };
    compare("losses", &train_losses(&records), &train_losses(&expected));
    let [resumed, unbroken] = [&last, &expected_run].map(|fitted| parameters(&fitted.model));
    compare("parameters", &resumed, &unbroken);
    let facts = |state: &RunState| {
        let (valid, best) = (state.valid.unwrap(), state.best.unwrap());
        [
            state.train_loss.unwrap(),
            valid.loss,
            best.loss,
            state.tokens as f64,
        ]
    };
    let [resumed, unbroken] = [&last, &expected_run].map(|fitted| facts(&fitted.outcome.state));
    compare("the state", &resumed, &unbroken);
}
