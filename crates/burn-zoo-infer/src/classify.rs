//! Labels, or numbers, for texts: a model with a head for sequences.

use std::path::Path;

use burn::tensor::{DType, Device};
use burn_zoo_data::tokenizer::{Tokenizer, TokenizerError};
use burn_zoo_models::{
    directory::{self, DirectoryError},
    family::Architecture,
    inputs::InputFile,
};
use burn_zoo_nn::{
    ConfigError, HeadConfig, Transformer,
    head::{HeadOutput, SequenceState},
};

/// What makes texts impossible to classify.
#[derive(Debug, thiserror::Error)]
pub enum ClassifyError {
    /// The model cannot be read.
    #[error(transparent)]
    Directory(#[from] DirectoryError),
    /// The tokenizer cannot be read, or a text not encoded.
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
    /// The model has another head.
    #[error(
        "the model has no head that classifies sequences; config.json must name a class such as \
         BertForSequenceClassification"
    )]
    NotAClassifier,
    /// A text is empty.
    #[error("text {index} (counted from 0) has no tokens: there is nothing to classify")]
    EmptyText {
        /// Which text.
        index: usize,
    },
    /// The tokens do not fit the model.
    #[error(transparent)]
    Input(#[from] ConfigError),
}

/// A model that gives each text a number for each label.
pub struct SequenceClassifier {
    model: Transformer,
    architecture: Architecture,
    tokenizer: Tokenizer,
    labels: Vec<String>,
    device: Device,
}

impl SequenceClassifier {
    /// Tokens, padding included, that one forward pass reads.
    const BATCH_TOKENS: usize = 4096;

    /// Reads a model directory.
    ///
    /// # Errors
    ///
    /// When a file cannot be read, or the model has no head for sequences.
    pub fn load(path: &Path, device: &Device) -> Result<Self, ClassifyError> {
        let (model, architecture) = directory::load(path, device)?;
        let HeadConfig::Sequence { n_labels, .. } = architecture.transformer.head else {
            return Err(ClassifyError::NotAClassifier);
        };
        let names = architecture.common().id2label.unwrap_or_default();
        let name = |id: usize| {
            let name = names.get(&id.to_string()).and_then(|name| name.as_str());
            name.map_or(format!("LABEL_{id}"), str::to_owned)
        };
        Ok(Self {
            model,
            tokenizer: Tokenizer::load(&path.join(directory::TOKENIZER))?,
            labels: (0..n_labels).map(name).collect(),
            architecture,
            device: device.clone(),
        })
    }

    /// The labels' names, as `id2label` gives them. One alone stands for a number.
    pub fn labels(&self) -> &[String] {
        &self.labels
    }

    /// The logits of each text, one for each label. Texts that are too long are cut. Calls `on_progress`
    /// after each batch with how many texts are done.
    ///
    /// # Errors
    ///
    /// When a text cannot be encoded or has no tokens.
    pub fn logits<T: AsRef<str>>(
        &self,
        texts: &[T],
        on_progress: impl Fn(usize),
    ) -> Result<Vec<Vec<f32>>, ClassifyError> {
        let length = self.model.context_length();
        let tokens = self.tokenizer.encode_marked(texts, length)?;
        if let Some(index) = tokens.iter().position(Vec::is_empty) {
            return Err(ClassifyError::EmptyText { index });
        }
        let mut order: Vec<usize> = (0..tokens.len()).collect();
        order.sort_by_key(|&index| std::cmp::Reverse(tokens[index].len()));
        let mut logits = vec![Vec::new(); tokens.len()];
        let mut rest = order.as_slice();
        while let Some(&longest) = rest.first() {
            let fitting = (Self::BATCH_TOKENS / tokens[longest].len()).clamp(1, rest.len());
            let fitting = if self.finds_end_by_length() {
                1
            } else {
                fitting
            };
            let (batch, after) = rest.split_at(fitting);
            let batch_tokens: Vec<&[u32]> = batch.iter().map(|&i| tokens[i].as_slice()).collect();
            for (&index, values) in batch.iter().zip(self.batch_logits(&batch_tokens)?) {
                logits[index] = values;
            }
            rest = after;
            on_progress(tokens.len() - rest.len());
        }
        Ok(logits)
    }

    /// Whether padding would be taken for a text's last token.
    fn finds_end_by_length(&self) -> bool {
        matches!(
            self.architecture.transformer.head,
            HeadConfig::Sequence {
                state: SequenceState::Last { padding_id: None },
                ..
            }
        )
    }

    fn batch_logits(&self, texts: &[&[u32]]) -> Result<Vec<Vec<f32>>, ClassifyError> {
        let seq = texts.iter().map(|text| text.len()).max().unwrap_or(0);
        let padding = self.architecture.common().padding_id().unwrap_or(0) as i64;
        let filled = |value: &dyn Fn(u32) -> i64, padding: i64| -> Vec<Vec<i64>> {
            let row = |text: &&[u32]| {
                let mut row: Vec<i64> = text.iter().map(|&token| value(token)).collect();
                row.resize(seq, padding);
                row
            };
            texts.iter().map(row).collect()
        };
        let input = InputFile {
            input_ids: filled(&i64::from, padding),
            attention_mask: Some(filled(&|_| 1, 0)),
            ..InputFile::default()
        };
        let outputs = self
            .model
            .outputs(input.inputs(&self.architecture, &self.device)?);
        let HeadOutput::Sequence(logits) = outputs.head else {
            return Err(ClassifyError::NotAClassifier);
        };
        let data = logits.into_data().convert_dtype(DType::F32);
        let values = data.try_to_vec::<f32>().expect("just converted");
        Ok(values
            .chunks(self.labels.len())
            .map(<[f32]>::to_vec)
            .collect())
    }
}
