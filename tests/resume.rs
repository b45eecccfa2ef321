//! Interrupting and resuming. Alone in its process, because burn's generator of dropout belongs to the
//! device, and a training beside this one would draw from it.

mod common;

use std::sync::Arc;

use burn_train::Interrupter;
use burn_zoo::{
    models::gpt::GptConfig,
    nn::init,
    train::{
        step_loop::{End, Record},
        trainer::{Session, fit},
    },
};
use common::{
    processor,
    training::{MODEL, config, model, own_tokens, parameters, recorder, train_losses},
};

/// Interrupted twice, once before the first evaluation, with dropout, accumulation, and the schedule
/// half-way: the losses and the parameters are bit for bit those of a run that was left alone.
#[test]
fn a_resumed_run_is_the_unbroken_run() {
    let (splits, vocab_size) = own_tokens();
    let device = processor();
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
    let expected_model = fit(
        model(&sizes, vocab_size, &device),
        &splits,
        &config,
        &device,
        session,
    )
    .unwrap()
    .model;

    let broken = tempfile::tempdir().unwrap();
    let (found, on_record) = recorder();
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
                record(event);
                if matches!(event, Record::Train { step, .. } if step == stop_at) {
                    handle.stop(None);
                }
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
        let fitted = fit(start, &splits, &config, &device, session).unwrap();
        let expected_end = if stop_at == usize::MAX {
            End::Finished
        } else {
            End::Interrupted
        };
        assert_eq!(fitted.outcome.end, expected_end);
        last = Some(fitted.model);
        resume = true;
    }
    let bits = |losses: Vec<f64>| losses.into_iter().map(f64::to_bits).collect::<Vec<_>>();
    assert_eq!(bits(train_losses(&found)), bits(train_losses(&expected)));
    let [found, expected] = [last.unwrap(), expected_model].map(|model| parameters(&model));
    assert_eq!(bits(found), bits(expected));
}
