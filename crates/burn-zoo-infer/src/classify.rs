//! Labels, or numbers, for texts: a model with a head for sequences.

use std::path::Path;

use burn::tensor::{DType, Device};
use burn_zoo_data::{
    marked::{Cut, Marked, Reading},
    tokenizer::{Tokenizer, TokenizerError},
};
use burn_zoo_models::{
    directory::{self, DirectoryError},
    family::Architecture,
    inputs::InputFile,
};
use burn_zoo_nn::{ConfigError, HeadConfig, Transformer, head::HeadOutput};

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
        let names = architecture.labels();
        let name = |id: usize| names.get(id).cloned().unwrap_or(format!("LABEL_{id}"));
        Ok(Self {
            model,
            tokenizer: Tokenizer::load(&directory::tokenizer(path)?)?,
            labels: (0..n_labels).map(name).collect(),
            architecture,
            device: device.clone(),
        })
    }

    /// The labels' names, as `id2label` gives them. One alone stands for a number.
    pub fn labels(&self) -> &[String] {
        &self.labels
    }

    /// The logits of each reading, one for each label. Readings that are too long are cut. Calls
    /// `on_progress` after each batch with how many are done.
    ///
    /// # Errors
    ///
    /// When a text cannot be encoded or has no tokens.
    pub fn logits(
        &self,
        readings: &[Reading],
        on_progress: impl Fn(usize),
    ) -> Result<Vec<Vec<f32>>, ClassifyError> {
        let length = self.model.context_length();
        let marked = self.tokenizer.mark(readings, length, Cut::End)?.concat();
        if let Some(index) = marked.iter().position(|marked| marked.tokens.is_empty()) {
            return Err(ClassifyError::EmptyText { index });
        }
        let mut order: Vec<usize> = (0..marked.len()).collect();
        order.sort_by_key(|&index| std::cmp::Reverse(marked[index].tokens.len()));
        let mut logits = vec![Vec::new(); marked.len()];
        let mut rest = order.as_slice();
        while let Some(&longest) = rest.first() {
            let fitting = Self::BATCH_TOKENS / marked[longest].tokens.len();
            let (batch, after) = rest.split_at(fitting.clamp(1, rest.len()));
            let read: Vec<&Marked> = batch.iter().map(|&index| &marked[index]).collect();
            for (&index, values) in batch.iter().zip(self.batch_logits(&read)?) {
                logits[index] = values;
            }
            rest = after;
            on_progress(marked.len() - rest.len());
        }
        Ok(logits)
    }

    fn batch_logits(&self, batch: &[&Marked]) -> Result<Vec<Vec<f32>>, ClassifyError> {
        let seq = batch.iter().map(|marked| marked.tokens.len()).max();
        let padding = self.architecture.common().padding_id().unwrap_or(0);
        let rows = |values: &dyn Fn(&Marked) -> Vec<i64>, padding: i64| -> Vec<Vec<i64>> {
            let row = |marked: &&Marked| {
                let mut row = values(marked);
                row.resize(seq.unwrap_or(0), padding);
                row
            };
            batch.iter().map(row).collect()
        };
        let ids = |ids: &[u32]| ids.iter().map(|&id| id.into()).collect();
        let has_segments = self.architecture.transformer.embedding.n_segments > 0;
        let input = InputFile {
            input_ids: rows(&|marked| ids(&marked.tokens), padding as i64),
            attention_mask: Some(rows(&|marked| vec![1; marked.tokens.len()], 0)),
            token_type_ids: has_segments.then(|| rows(&|marked| ids(&marked.segments), 0)),
            ..InputFile::default()
        };
        let inputs = input.inputs(&self.architecture, &self.device)?;
        let HeadOutput::Sequence(logits) = self.model.outputs(inputs).head else {
            return Err(ClassifyError::NotAClassifier);
        };
        let data = logits.into_data().convert_dtype(DType::F32);
        let values = data.try_to_vec::<f32>().expect("just converted");
        let rows = values.chunks(self.labels.len());
        Ok(rows.map(<[f32]>::to_vec).collect())
    }
}
