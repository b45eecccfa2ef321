//! What an objective of language needs before a model can learn it: tokens of its own, data, and a fitting
//! model.

use std::path::Path;
use std::sync::Arc;

use burn_zoo_data::{
    corpus::Corpus,
    pairs::{PairMarks, SentencePairs},
    pipeline,
    sentences::{Sentences, documents},
    shards::{self, Shards, TokenSource},
    tokenizer::{MASK, Tokenizer, TokenizerConfig, TokenizerError},
    vocabulary::{BEGIN, PADDING, SEPARATOR},
    windows::{
        Corruption, Infilling, InfillingMarks, Masking, Noise, Prediction, Splits, StepShape,
        Windows,
    },
};
use burn_zoo_models::family::Architecture;
use burn_zoo_nn::{ConfigError, HeadConfig, TransformerConfig, embedding::PositionConfig};

use crate::{
    recipe::{Documents, Objective, Recipe, RecipeError},
    run::RunError,
    task::{Data, Task, given_tokenizer},
};

/// What a recipe's objective makes of a text, with the tokenizer of an earlier run if there was one.
///
/// # Panics
///
/// When the objective is one of labels.
pub(crate) fn prepare(
    recipe: &Recipe,
    text: &str,
    earlier: Option<Tokenizer>,
) -> Result<Task, RunError> {
    let corpus = Corpus::split(text, recipe.data.valid_fraction);
    let tokenizer = match (earlier, &recipe.tokenizer) {
        (Some(tokenizer), _) => tokenizer,
        (None, Some(config)) => train_tokenizer(config, text, &corpus)?,
        (None, None) => given_tokenizer(recipe)?,
    };
    learn(Parts {
        recipe,
        material: Split::Text(corpus),
        tokenizer,
    })
}

/// The same of tokens that `burn-zoo data prepare` packed into a folder, which has their tokenizer.
pub(crate) fn prepare_packed(
    recipe: &Recipe,
    folder: &Path,
    earlier: Option<Tokenizer>,
) -> Result<Task, RunError> {
    if recipe.tokenizer.is_some() {
        let problem = "must be left out: the corpus is packed by a tokenizer of its own";
        return Err(RecipeError::key("tokenizer", problem).into());
    }
    let shards = Shards::open(&folder.join(pipeline::TOKENS))?;
    let tokenizer = match earlier {
        Some(tokenizer) => tokenizer,
        None => Tokenizer::load(&folder.join(pipeline::TOKENIZER))?,
    };
    let [train, valid] =
        [shards::Split::Train, shards::Split::Valid].map(|split| shards.split(split));
    learn(Parts {
        recipe,
        material: Split::Packed(Splits {
            train: train.into(),
            valid: valid.into(),
        }),
        tokenizer,
    })
}

fn learn(parts: Parts<'_>) -> Result<Task, RunError> {
    match parts.recipe.objective {
        Objective::CausalLm { documents } => parts.causal_lm(documents),
        Objective::PrefixLm {} => parts.prefix_lm(),
        Objective::MaskedLm {
            probability,
            whole_words,
            documents,
        } => parts.masked_lm(probability, whole_words, documents),
        Objective::Pretraining {
            probability,
            whole_words,
        } => parts.pretraining(probability, whole_words),
        Objective::BlankInfilling {
            density,
            mean_span_length,
            long_share,
        } => parts.blank_infilling(density, mean_span_length, long_share),
        Objective::SpanCorruption {
            noise_density,
            mean_span_length,
        } => parts.span_corruption(Noise {
            density: noise_density,
            mean_span_length,
        }),
        Objective::Classification(_)
        | Objective::Regression(_)
        | Objective::TokenClassification(_)
        | Objective::SpanExtraction(_) => unreachable!("labels are not learned from a text"),
    }
}

/// Learns merges from the training part alone. Characters come from the whole text, because a
/// held-out one that is in no token could not be scored.
fn train_tokenizer(
    config: &TokenizerConfig,
    text: &str,
    corpus: &Corpus,
) -> Result<Tokenizer, TokenizerError> {
    match config {
        TokenizerConfig::Char => Tokenizer::train(config, text),
        TokenizerConfig::Bpe { .. }
        | TokenizerConfig::WordPiece { .. }
        | TokenizerConfig::Unigram { .. }
        | TokenizerConfig::File { .. } => Tokenizer::train(config, &corpus.train),
    }
}

fn refuse<T>(field: &str, problem: impl Into<String>) -> Result<T, RunError> {
    Err(RunError::Model(ConfigError::new(field, problem.into())))
}

/// Writes the id of a token into a model's configuration, unless it says another, and returns what it says.
fn name_token(architecture: &mut Architecture, key: &str, id: u32) -> u32 {
    let value = architecture.json.entry(key);
    let value = value.or_insert_with(|| id.into()).as_u64();
    value.and_then(|id| u32::try_from(id).ok()).unwrap_or(id)
}

/// What all objectives start from.
struct Parts<'a> {
    recipe: &'a Recipe,
    material: Split,
    tokenizer: Tokenizer,
}

/// What is learned from and what is held out.
enum Split {
    Text(Corpus),
    Packed(Splits),
}

impl Parts<'_> {
    fn causal_lm(self, documents: Documents) -> Result<Task, RunError> {
        let architecture = self.decoder()?;
        if architecture.transformer.stack.has_prefix() {
            return refuse(
                "stack.blocks",
                "have prefix attention, which this objective leaves untrained: use objective = \
                 \"prefix_lm\"",
            );
        }
        match documents {
            Documents::Attend => self.windows(architecture, Prediction::Next),
            Documents::Separate => self.windows(architecture, Prediction::NextInDocument),
        }
    }

    fn prefix_lm(self) -> Result<Task, RunError> {
        let architecture = self.decoder()?;
        if !architecture.transformer.stack.has_prefix() {
            return refuse(
                "stack.blocks",
                "have no prefix attention: use objective = \"causal_lm\"",
            );
        }
        self.windows(architecture, Prediction::AfterPrefix)
    }

    fn masked_lm(
        mut self,
        probability: f64,
        whole_words: bool,
        documents: Documents,
    ) -> Result<Task, RunError> {
        self.tokenizer.add_special_tokens(&[MASK])?;
        let mut architecture = self.language_model()?;
        let masking = self.masking(&mut architecture, probability, whole_words)?;
        let prediction = match documents {
            Documents::Attend => Prediction::Masked(masking),
            Documents::Separate => Prediction::MaskedInDocument(masking),
        };
        self.windows(architecture, prediction)
    }

    fn pretraining(mut self, probability: f64, whole_words: bool) -> Result<Task, RunError> {
        let marks = [PADDING, BEGIN, SEPARATOR, MASK];
        self.tokenizer.add_special_tokens(&marks)?;
        self.tokenizer.mark_as_bert()?;
        let mut architecture = self.language_model()?;
        let config = &architecture.transformer;
        if !matches!(config.head, HeadConfig::Pretraining(_)) {
            return refuse(
                "head",
                "must also say whether texts follow: use a class for pre-training, such as \
                 BertForPreTraining",
            );
        }
        if config.embedding.n_segments < 2 {
            return refuse(
                "embedding.n_segments",
                "must be at least 2, one for each text",
            );
        }
        require_context(config, 5)?;
        let marks = PairMarks {
            begin: self.tokenizer.require(BEGIN)?,
            separator: self.tokenizer.require(SEPARATOR)?,
            padding: self.tokenizer.require(PADDING)?,
        };
        name_token(&mut architecture, "pad_token_id", marks.padding);
        let masking = self.masking(&mut architecture, probability, whole_words)?;
        let Split::Text(corpus) = &self.material else {
            return Err(RunError::Material(
                "a text, whose sentences are not packed yet",
            ));
        };
        let sentences = |text: &str| Sentences::of_text(text, &self.tokenizer);
        let sentences = [sentences(&corpus.train)?, sentences(&corpus.valid)?];
        let [train, valid] = [0, 1].map(|split| Arc::clone(sentences[split].tokens()).into());
        let shape = self.shape(&architecture);
        let pairs = SentencePairs::new(sentences, shape, marks, masking, self.recipe.seed)?;
        Ok(Task {
            tokenizer: self.tokenizer,
            architecture,
            splits: Splits { train, valid },
            data: Data::Pairs(pairs),
        })
    }

    fn blank_infilling(
        mut self,
        density: f64,
        mean_span_length: f64,
        long_share: f64,
    ) -> Result<Task, RunError> {
        self.tokenizer.add_special_tokens(&InfillingMarks::NAMES)?;
        let mut architecture = self.decoder()?;
        let config = &architecture.transformer;
        if !config.stack.has_prefix() || config.embedding.position != PositionConfig::PrefixAndBlock
        {
            return refuse(
                "stack.blocks",
                "must have prefix attention, and the embedding a position in the text and one in \
                 the span: use a GLM, such as wudao2",
            );
        }
        require_context(config, 3)?;
        let mut marks = [0; 4];
        for (id, name) in marks.iter_mut().zip(InfillingMarks::NAMES) {
            *id = self.tokenizer.require(name)?;
        }
        let [mask, long_mask, start, end] = marks;
        name_token(&mut architecture, "eos_token_id", end);
        let infilling = Infilling {
            density,
            mean_span_length,
            long_share,
            marks: InfillingMarks {
                mask,
                long_mask,
                start,
                end,
            },
        };
        self.windows(architecture, Prediction::Infilled(infilling))
    }

    fn span_corruption(mut self, noise: Noise) -> Result<Task, RunError> {
        const PADDING: &str = "<pad>";
        const END: &str = "</s>";
        // Sentinels as T5 has them: a hundred or what a window needs, the first with the highest id.
        let context_length = self.architecture()?.transformer.context_length();
        let (_, n_spans) = noise.counts(noise.text_length(context_length));
        let names: Vec<String> = (0..n_spans.max(100))
            .map(Corruption::sentinel_name)
            .collect();
        self.tokenizer.add_special_tokens(&[PADDING, END])?;
        let descending: Vec<&String> = names.iter().rev().collect();
        self.tokenizer.add_special_tokens(&descending)?;

        let mut architecture = self.architecture()?;
        let config = &architecture.transformer;
        if config.encoder.is_none() || config.head.language().is_none() {
            return refuse(
                "encoder",
                "is missing, or a head that scores the vocabulary: use an encoder–decoder, such as \
                 T5ForConditionalGeneration",
            );
        }
        require_context(config, 3)?;
        let padding = self.tokenizer.require(PADDING)?;
        let end = self.tokenizer.require(END)?;
        let padding = name_token(&mut architecture, "pad_token_id", padding);
        let sentinels: Result<Arc<[u32]>, _> = names
            .iter()
            .map(|name| self.tokenizer.require(name))
            .collect();
        let corruption = Corruption {
            noise,
            sentinels: sentinels?,
            end: name_token(&mut architecture, "eos_token_id", end),
            decoder_start: name_token(&mut architecture, "decoder_start_token_id", padding),
        };
        self.windows(architecture, Prediction::Corrupted(corruption))
    }

    fn masking(
        &self,
        architecture: &mut Architecture,
        probability: f64,
        whole_words: bool,
    ) -> Result<Masking, RunError> {
        let mask = self.tokenizer.require(MASK)?;
        name_token(architecture, "mask_token_id", mask);
        Ok(Masking {
            probability,
            whole_words,
            mask,
            vocabulary: self.tokenizer.vocabulary(),
        })
    }

    fn architecture(&self) -> Result<Architecture, RunError> {
        let vocab_size = self.tokenizer.vocab_size();
        let architecture = self.recipe.model.architecture(vocab_size);
        architecture.map_err(RunError::Model)
    }

    /// A model of one text that scores the vocabulary.
    fn language_model(&self) -> Result<Architecture, RunError> {
        let architecture = self.architecture()?;
        let config = &architecture.transformer;
        if config.head.language().is_none() {
            return refuse(
                "head",
                "must score the vocabulary: use a class with a language head",
            );
        }
        if config.encoder.is_some() {
            return refuse(
                "encoder",
                "is not trained by this objective, which reads one text: use objective = \
                 \"span_corruption\"",
            );
        }
        Ok(architecture)
    }

    /// One that does not see the token to predict.
    fn decoder(&self) -> Result<Architecture, RunError> {
        let architecture = self.language_model()?;
        match architecture.transformer.stack.is_decoder() {
            true => Ok(architecture),
            false => refuse(
                "stack.blocks",
                "see the token to predict: use objective = \"masked_lm\"",
            ),
        }
    }

    fn shape(&self, architecture: &Architecture) -> StepShape {
        StepShape {
            batch_size: self.recipe.training.batch_size,
            accumulation: self.recipe.training.accumulation,
            context_length: architecture.transformer.context_length(),
        }
    }

    fn windows(self, architecture: Architecture, prediction: Prediction) -> Result<Task, RunError> {
        let tokens = |text: &str| -> Result<TokenSource, TokenizerError> {
            if !prediction.keeps_documents_apart() {
                return Ok(self.tokenizer.encode(text)?.into());
            }
            let documents = self.tokenizer.encode_batch(&documents(text))?;
            Ok(documents.into_iter().collect())
        };
        let splits = match &self.material {
            Split::Packed(splits) => splits.clone(),
            Split::Text(corpus) => Splits {
                train: tokens(&corpus.train)?,
                valid: tokens(&corpus.valid)?,
            },
        };
        let shape = self.shape(&architecture);
        let windows = Windows::new(splits.clone(), shape, prediction, self.recipe.seed)?;
        let windows = windows.with_order(self.recipe.data.order);
        Ok(Task {
            tokenizer: self.tokenizer,
            architecture,
            splits,
            data: Data::Windows(windows),
        })
    }
}

/// Refuses a context that holds nothing to learn.
fn require_context(config: &TransformerConfig, shortest: usize) -> Result<(), RunError> {
    match config.context_length() {
        found if found < shortest => refuse(
            "context_length",
            format!("must be at least {shortest} for this objective, got {found}"),
        ),
        _ => Ok(()),
    }
}
