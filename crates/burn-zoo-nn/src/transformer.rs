//! The model: embedding → stack → head, with an encoder before the stack where there is one.

use burn::module::{Module, ModuleDisplay};
use burn::tensor::{Device, Int, Tensor};
use serde::{Deserialize, Serialize};

use crate::{
    ConfigError,
    attention::AttentionPattern,
    block::BlockConfig,
    cache::KvCache,
    contact::{ContactHead, ContactHeadConfig},
    embedding::{Embedding, EmbeddingConfig, PositionConfig},
    head::{Head, HeadConfig, HeadOutput},
    init,
    inputs::Inputs,
    linear::{Linear, Linears, named, within},
    mixture::Routing,
    norm::NormConfig,
    pass::{Memory, Pass},
    scores::VocabularyScores,
    stack::{Stack, StackConfig},
};

/// A model that scores the next token at every position.
///
/// This is all that training needs to know of an architecture, so a model composed by hand from the
/// zoo's components trains like a [`Transformer`].
pub trait LanguageModel: Module + ModuleDisplay + 'static {
    /// Token ids `[batch, seq]` to logits `[batch, seq, vocab_size]`.
    fn forward(&self, tokens: Tensor<2, Int>) -> Tensor<3>;

    /// The same for inputs with more than tokens, with what each mixture of experts decided: their
    /// auxiliary losses are part of the training loss. With an encoder the logits are for the decoder's
    /// tokens. A model that does not say otherwise reads the tokens alone.
    fn forward_routed(&self, inputs: Inputs) -> (Tensor<3>, Vec<Routing>) {
        (self.forward(inputs.tokens), Vec::new())
    }

    /// The scores of tokens for a loss, a row for each of the places `asked` in the flattened `[batch · seq]`, for all
    /// when none, and what mixtures of experts decided. A model that does not say otherwise scores all tokens first.
    fn score(
        &self,
        inputs: Inputs,
        asked: Option<Tensor<1, Int>>,
    ) -> (VocabularyScores, Vec<Routing>) {
        let (logits, routing) = self.forward_routed(inputs);
        (VocabularyScores::Logits(rows(logits, asked)), routing)
    }
}

/// Configuration of a [`Transformer`].
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TransformerConfig {
    /// Tokens, positions and segments.
    pub embedding: EmbeddingConfig,
    /// The encoder that the stack reads by cross-attention, if any. It shares the token embedding.
    pub encoder: Option<StackConfig>,
    /// The only stack of an encoder or decoder, or the decoder of both.
    pub stack: StackConfig,
    /// Whether the first token's state goes through a dense layer with tanh (BERT).
    pub pooler: bool,
    /// What follows the last hidden state.
    pub head: HeadConfig,
    /// A head that reads contacts from the attention of all layers (ESM), if any.
    pub contact_head: Option<ContactHeadConfig>,
}

impl TransformerConfig {
    /// These blocks, with learned positions, a final norm after pre-norm blocks, and the token
    /// embedding as head.
    pub fn new(
        vocab_size: usize,
        d_model: usize,
        context_length: usize,
        blocks: Vec<BlockConfig>,
    ) -> Self {
        Self {
            embedding: EmbeddingConfig::new(vocab_size, d_model, context_length),
            encoder: None,
            stack: StackConfig::new(blocks),
            pooler: false,
            head: HeadConfig::tied(),
            contact_head: None,
        }
    }

    /// `n_layers` equal blocks with GPT-2's initialisation: weights from N(0, 0.02²), those that
    /// write to the residual stream scaled by 1/√(2 · n_layers) (Radford et al. 2019).
    pub fn uniform(
        vocab_size: usize,
        context_length: usize,
        n_layers: usize,
        block: BlockConfig,
    ) -> Self {
        let d_model = block.attention.d_model;
        Self::new(vocab_size, d_model, context_length, vec![block; n_layers])
            .with_residual_init(0.02)
    }

    /// The same with weights from N(0, `std`²), those that write to the residual stream scaled by
    /// 1/√(2 · n_layers).
    pub fn with_residual_init(self, std: f64) -> Self {
        self.with_weights(std, |n_layers| std / (2.0 * n_layers as f64).sqrt())
    }

    /// The same with all weights from N(0, `std`²), as BERT has them.
    pub fn with_uniform_init(self, std: f64) -> Self {
        self.with_weights(std, |_| std)
    }

    fn with_weights(mut self, std: f64, output_std: impl Fn(usize) -> f64) -> Self {
        self.embedding.init_std = std;
        for stack in self.encoder.iter_mut().chain([&mut self.stack]) {
            let output_std = output_std(stack.blocks.len().max(1));
            for block in &mut stack.blocks {
                for attention in [Some(&mut block.attention), block.cross_attention.as_mut()] {
                    let Some(attention) = attention else { continue };
                    attention.init_std = std;
                    attention.output_init_std = output_std;
                }
                block.feed_forward.init_std = std;
                block.feed_forward.output_init_std = output_std;
            }
        }
        self
    }

    /// The same with another way for position to enter the embedding.
    pub fn with_position(mut self, position: PositionConfig) -> Self {
        self.embedding.position = position;
        self
    }

    /// The same with another head.
    pub fn with_head(mut self, head: HeadConfig) -> Self {
        self.head = head;
        self
    }

    /// The same with another norm after the last block.
    pub fn with_final_norm(mut self, norm: Option<NormConfig>) -> Self {
        self.stack.final_norm = norm;
        self
    }

    /// The same with a share of embedding and sub-layer values set to zero in training.
    pub fn with_dropout(mut self, dropout: f64) -> Self {
        self.embedding.dropout = dropout;
        for block in self.blocks_mut() {
            block.dropout = dropout;
        }
        self
    }

    /// The same with a share of attention probabilities set to zero in training.
    pub fn with_attention_dropout(mut self, dropout: f64) -> Self {
        for block in self.blocks_mut() {
            block.attention.dropout = Some(dropout);
            if let Some(cross_attention) = &mut block.cross_attention {
                cross_attention.dropout = Some(dropout);
            }
        }
        self
    }

    fn blocks_mut(&mut self) -> impl Iterator<Item = &mut BlockConfig> {
        let stacks = self.encoder.iter_mut().chain([&mut self.stack]);
        stacks.flat_map(|stack| &mut stack.blocks)
    }

    /// The same with nothing set to zero in training.
    pub fn without_dropout(mut self) -> Self {
        if let HeadConfig::Sequence { dropout, .. } | HeadConfig::Token { dropout, .. } =
            &mut self.head
        {
            *dropout = 0.0;
        }
        self.with_dropout(0.0).with_attention_dropout(0.0)
    }

    /// The same with other initial embeddings and head.
    pub fn with_init_std(mut self, std: f64) -> Self {
        self.embedding.init_std = std;
        self
    }

    /// The width of the residual stream.
    pub fn d_model(&self) -> usize {
        self.embedding.d_model
    }

    /// How many different tokens there are.
    pub fn vocab_size(&self) -> usize {
        self.embedding.vocab_size
    }

    /// The longest sequence.
    pub fn context_length(&self) -> usize {
        self.embedding.context_length
    }

    /// Refuses parts that do not fit together, naming the field.
    pub fn validate(&self) -> Result<(), ConfigError> {
        self.embedding
            .validate()
            .map_err(|error| error.within("embedding"))?;
        self.stack
            .validate(self.d_model())
            .map_err(|error| error.within("stack"))?;
        let has_cross = |block: &BlockConfig| block.cross_attention.is_some();
        match &self.encoder {
            Some(encoder) => {
                encoder
                    .validate(self.d_model())
                    .map_err(|error| error.within("encoder"))?;
                for (index, block) in encoder.blocks.iter().enumerate() {
                    let parent = format!("encoder.blocks.{index}");
                    if block.attention.pattern != AttentionPattern::Bidirectional {
                        let problem = "must be bidirectional: an encoder has the whole sequence";
                        return Err(ConfigError::new("attention.pattern", problem).within(&parent));
                    }
                    if has_cross(block) {
                        let problem = "is for decoders: an encoder has nothing else to read";
                        return Err(ConfigError::new("cross_attention", problem).within(&parent));
                    }
                }
                if !self.stack.is_decoder() {
                    return Err(ConfigError::new(
                        "stack.blocks",
                        "must not be bidirectional in the decoder of an encoder–decoder",
                    ));
                }
            }
            None if self.stack.blocks.iter().any(has_cross) => {
                return Err(ConfigError::new(
                    "stack.blocks",
                    "have cross-attention, but there is no encoder to read",
                ));
            }
            None => {}
        }
        let sees_all =
            |block: &BlockConfig| block.attention.pattern == AttentionPattern::Bidirectional;
        if self.contact_head.is_some() && !self.stack.blocks.iter().all(sees_all) {
            let problem = "needs bidirectional blocks: contacts are symmetric";
            return Err(ConfigError::new("contact_head", problem));
        }
        self.head.validate(self.pooler)
    }

    /// How many attention maps the stack makes.
    fn n_attention_maps(&self) -> usize {
        let blocks = self.stack.blocks.iter();
        blocks.map(|block| block.attention.n_heads).sum()
    }

    /// How many parameters the model has, counted without building it. A tied head counts once.
    pub fn n_parameters(&self) -> usize {
        self.count(StackConfig::n_parameters)
    }

    /// How many of them one token goes through: all, but for mixtures of experts.
    pub fn n_active_parameters(&self) -> usize {
        self.count(StackConfig::n_active_parameters)
    }

    fn count(&self, stack: fn(&StackConfig, usize) -> usize) -> usize {
        let d_model = self.d_model();
        let encoder = self.encoder.as_ref();
        let pooler = if self.pooler {
            d_model * (d_model + 1)
        } else {
            0
        };
        let contact = self.contact_head.as_ref();
        self.embedding.n_parameters()
            + encoder.map_or(0, |encoder| stack(encoder, d_model))
            + stack(&self.stack, d_model)
            + pooler
            + contact.map_or(0, |config| config.n_parameters(self.n_attention_maps()))
            + self.head.n_parameters(self.vocab_size(), d_model)
    }

    /// Gives `model` a new pooler and head, where it has them.
    pub fn init_ends(&self, model: &mut Transformer, device: &Device) {
        let (d_model, std) = (self.d_model(), self.embedding.init_std);
        model.pooler = self
            .pooler
            .then(|| init::linear(d_model, d_model, true, std, device));
        model.head = self.head.init(self.vocab_size(), d_model, std, device);
    }

    /// A model on `device`. Its values follow from [`init::seed`].
    ///
    /// # Panics
    ///
    /// When [`validate`](Self::validate) would refuse the configuration.
    pub fn init(&self, device: &Device) -> Transformer {
        if let Err(error) = self.validate() {
            panic!("transformer configuration: {error}");
        }
        let (d_model, std) = (self.d_model(), self.embedding.init_std);
        Transformer {
            embedding: self.embedding.init(device),
            encoder: self
                .encoder
                .as_ref()
                .map(|encoder| encoder.init(d_model, device)),
            stack: self.stack.init(d_model, device),
            pooler: self
                .pooler
                .then(|| init::linear(d_model, d_model, true, std, device)),
            head: self.head.init(self.vocab_size(), d_model, std, device),
            contact: self
                .contact_head
                .as_ref()
                .map(|config| config.init(self.n_attention_maps(), std, device)),
            context_length: self.context_length(),
            is_decoder: self.stack.is_decoder(),
        }
    }
}

/// A transformer. Built by [`TransformerConfig::init`].
#[derive(Module, Debug)]
pub struct Transformer {
    /// Tokens, positions and segments.
    pub embedding: Embedding,
    /// The encoder that the stack reads.
    pub encoder: Option<Stack>,
    /// The layers.
    pub stack: Stack,
    /// The dense layer of the first token's state.
    pub pooler: Option<Linear>,
    /// What follows the last hidden state.
    pub head: Head,
    /// The reader of contacts.
    pub contact: Option<ContactHead>,
    context_length: usize,
    is_decoder: bool,
}

/// All that a model gives.
#[derive(Clone, Debug)]
pub struct Outputs {
    /// The normalised output of the last block, `[batch, seq, d_model]`.
    pub hidden: Tensor<3>,
    /// The encoder's, `[batch, encoder seq, d_model]`.
    pub encoder_hidden: Option<Tensor<3>>,
    /// The first token's state through the pooler, `[batch, d_model]`.
    pub pooled: Option<Tensor<2>>,
    /// What the head makes of it.
    pub head: HeadOutput,
    /// What each mixture of experts decided.
    pub routing: Vec<Routing>,
}

impl Transformer {
    /// Its linear layers by path, such as `stack.blocks.0.attention.query`: all matrices but embeddings and
    /// the reader of contacts.
    pub fn linears(&mut self) -> Linears<'_> {
        let mut linears = Linears::new();
        if let Some(encoder) = &mut self.encoder {
            linears.extend(within("encoder", encoder.linears()));
        }
        linears.extend(within("stack", self.stack.linears()));
        linears.extend(named(self.pooler.as_mut().map(|pooler| ("pooler", pooler))));
        linears.extend(within("head", self.head.linears()));
        linears
    }

    /// A copy that is about the same and sooner done where memory is what it waits for: the linear layers of its decoder read
    /// their matrices in 8 bits. What it writes is a draft, which this model reads at once and knows how far to follow. None
    /// where there are no kernels for it.
    pub fn draft(&self) -> Option<Self> {
        let mut draft = self.clone();
        let mut linears = draft.stack.linears().into_iter();
        let is_quantized = linears.all(|(_, linear)| linear.quantize());
        is_quantized.then_some(draft)
    }

    /// The longest sequence.
    pub fn context_length(&self) -> usize {
        self.context_length
    }

    /// Whether tokens can be generated one by one.
    pub fn is_decoder(&self) -> bool {
        self.is_decoder
    }

    /// An empty cache for sequences of up to the context length.
    pub fn new_cache(&self) -> KvCache {
        self.stack.new_cache(self.context_length)
    }

    /// Everything that the model makes of its input.
    ///
    /// A model with an encoder reads `tokens` by it and `decoder_tokens` by its decoder.
    ///
    /// # Panics
    ///
    /// When a model with an encoder is given no `decoder_tokens`.
    pub fn outputs(&self, inputs: impl Into<Inputs>) -> Outputs {
        let inputs = inputs.into();
        // Heads look for marks in what was given, not in what a decoder is fed.
        let (tokens, visible) = (inputs.tokens.clone(), inputs.visible.clone());
        let (hidden, pass) = self.read(inputs);
        let encoder_hidden = pass.memory.map(|memory| memory.hidden);
        let pooled = self.pool(&hidden);
        let token = &self.embedding.token;
        Outputs {
            head: self
                .head
                .forward(hidden.clone(), pooled.clone(), tokens, visible, token),
            hidden,
            encoder_hidden,
            pooled,
            routing: pass.routing,
        }
    }

    /// The first token's state through the pooler: `[batch, seq, d_model] → [batch, d_model]`.
    fn pool(&self, hidden: &Tensor<3>) -> Option<Tensor<2>> {
        let pooler = self.pooler.as_ref()?;
        let first = hidden.clone().narrow(1, 0, 1).squeeze_dim::<2>(1);
        Some(pooler.forward(first).tanh())
    }

    /// The [scores](LanguageModel::score) of tokens for a loss, with the logits `[batch, 2]` for the second segment to
    /// follow the first or not.
    ///
    /// # Panics
    ///
    /// When the model's head is not one for pre-training.
    pub fn score_pairs(
        &self,
        inputs: Inputs,
        asked: Option<Tensor<1, Int>>,
    ) -> (VocabularyScores, Tensor<2>, Vec<Routing>) {
        assert!(
            self.head.is_for_pretraining(),
            "pre-training needs a head for tokens and pairs"
        );
        let (hidden, pass) = self.read(inputs);
        let pooled = self.pool(&hidden).expect("the configuration was validated");
        let relations = self.head.classify(pooled);
        let scores = self.head.scores(rows(hidden, asked), &self.embedding.token);
        (scores, relations, pass.routing)
    }

    /// The normalised output of the last block, of the decoder where there is an encoder, which is read first.
    fn read(&self, inputs: Inputs) -> (Tensor<3>, Pass) {
        let Some(memory) = self.encode(&inputs) else {
            return self.run(inputs, Pass::default(), None);
        };
        let tokens = inputs.decoder_tokens;
        let tokens = tokens.expect("an encoder–decoder needs decoder tokens");
        let pass = Pass {
            memory: Some(memory),
            ..Pass::default()
        };
        self.run(tokens.into(), pass, None)
    }

    /// The encoder's reading of the input, if there is an encoder.
    pub fn encode(&self, inputs: &Inputs) -> Option<Memory> {
        let encoder = self.encoder.as_ref()?;
        let mut pass = Pass {
            visible: inputs.visible.clone(),
            documents: inputs.documents.clone(),
            positions: inputs.positions(),
            ..Pass::default()
        };
        let x = self.embedding.forward(inputs, 0);
        Some(Memory {
            hidden: encoder.forward(x, &mut pass, None),
            visible: inputs.visible.clone(),
        })
    }

    /// The normalised output of the last block: `[batch, seq] → [batch, seq, d_model]`.
    ///
    /// With a cache, the tokens continue the sequence that the cache holds and are added to it.
    pub fn hidden(&self, inputs: impl Into<Inputs>, cache: Option<&mut KvCache>) -> Tensor<3> {
        self.run(inputs.into(), Pass::default(), cache).0
    }

    fn run(&self, inputs: Inputs, pass: Pass, cache: Option<&mut KvCache>) -> (Tensor<3>, Pass) {
        let start = cache.as_ref().map_or(0, |cache| cache.len());
        let cached = cache.as_ref().and_then(|cache| cache.memory.clone());
        let mut pass = Pass {
            start,
            memory: pass.memory.clone().or(cached),
            visible: inputs.visible.clone(),
            prefix_lengths: inputs.prefix_lengths.clone(),
            documents: inputs.documents.clone(),
            positions: inputs.positions(),
            ..pass
        };
        let x = self.embedding.forward(&inputs, start);
        (self.stack.forward(x, &mut pass, cache), pass)
    }

    /// The probability of each pair of residues to touch, `[batch, seq − 2, seq − 2]`, for a model with
    /// a contact head.
    pub fn contacts(&self, inputs: impl Into<Inputs>) -> Option<Tensor<3>> {
        let contact = self.contact.as_ref()?;
        let inputs = inputs.into();
        let (tokens, visible) = (inputs.tokens.clone(), inputs.visible.clone());
        let pass = Pass {
            attention_maps: Some(Vec::new()),
            ..Pass::default()
        };
        let (_, pass) = self.run(inputs, pass, None);
        let mut maps = Tensor::cat(pass.attention_maps?, 1);
        if let Some(visible) = visible {
            let [batch, seq] = visible.dims();
            let visible = visible.float();
            maps = maps
                * visible.clone().reshape([batch, 1, seq, 1])
                * visible.reshape([batch, 1, 1, seq]);
        }
        Some(contact.forward(maps, tokens))
    }

    /// `[.., d_model] → [.., vocab_size]`.
    pub fn logits<const D: usize>(&self, hidden: Tensor<D>) -> Tensor<D> {
        self.head.logits(hidden, &self.embedding.token)
    }

    /// Continues the cached sequences by `inputs` and scores what follows them:
    /// `[batch, seq] → [batch, vocab_size]`.
    ///
    /// A model with an encoder reads the memory that [`encode`](Self::encode) gave to the cache.
    ///
    /// # Panics
    ///
    /// When the cache cannot hold the tokens.
    pub fn decode(&self, inputs: impl Into<Inputs>, cache: &mut KvCache) -> Tensor<2> {
        self.decode_scores(inputs, cache, 1).logits()
    }

    /// The same of what follows each of the `last` tokens, not computed yet: `[batch, seq]` to rows `[batch · last]`.
    ///
    /// # Panics
    ///
    /// When the cache cannot hold the tokens, or there are fewer than `last`.
    pub fn decode_scores(
        &self,
        inputs: impl Into<Inputs>,
        cache: &mut KvCache,
        last: usize,
    ) -> VocabularyScores {
        let hidden = self.hidden(inputs, Some(cache));
        let [_, seq, _] = hidden.dims();
        let hidden = rows(hidden.narrow(1, seq - last, last), None);
        self.head.scores(hidden, &self.embedding.token)
    }
}

impl LanguageModel for Transformer {
    fn forward(&self, tokens: Tensor<2, Int>) -> Tensor<3> {
        self.forward_routed(tokens.into()).0
    }

    fn forward_routed(&self, inputs: Inputs) -> (Tensor<3>, Vec<Routing>) {
        let (hidden, pass) = self.read(inputs);
        (self.logits(hidden), pass.routing)
    }

    fn score(
        &self,
        inputs: Inputs,
        asked: Option<Tensor<1, Int>>,
    ) -> (VocabularyScores, Vec<Routing>) {
        let (hidden, pass) = self.read(inputs);
        let scores = self.head.scores(rows(hidden, asked), &self.embedding.token);
        (scores, pass.routing)
    }
}

/// Rows of a matrix of vectors, `[batch, seq, width] → [rows, width]`.
fn rows(vectors: Tensor<3>, asked: Option<Tensor<1, Int>>) -> Tensor<2> {
    let [batch, seq, width] = vectors.dims();
    let rows = vectors.reshape([batch * seq, width]);
    match asked {
        None => rows,
        Some(asked) => rows.select(0, asked),
    }
}
