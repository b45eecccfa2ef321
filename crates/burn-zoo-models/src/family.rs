//! A family of models: a configuration, a table of names, and the sizes that were published.

use std::sync::{LazyLock, PoisonError, RwLock};

use burn_zoo_nn::{
    ConfigError, HeadConfig, TransformerConfig, feed_forward::Activation, head::SequenceState,
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::{Map, Value};

use crate::names::Names;

/// What a model is for, which decides its head. Read from the class name in `architectures`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Task {
    /// Hidden states only.
    Base,
    /// Hidden states of the encoder of an encoder–decoder.
    Encoder,
    /// The next token.
    Language,
    /// The masked token.
    MaskedLanguage,
    /// The masked token, and whether the second segment follows.
    Pretraining,
    /// Whether the second segment follows.
    NextSentence,
    /// A label or a number for the sequence.
    Sequence,
    /// A label for each token.
    Token,
    /// Where an answer starts and ends.
    Span,
}

impl Task {
    /// The task of a class of the `transformers` library.
    ///
    /// # Errors
    ///
    /// When the zoo has no such head.
    pub fn from_class(class: &str) -> Result<Self, ConfigError> {
        let found = CLASS_ENDINGS
            .into_iter()
            .find(|(ending, _)| class.ends_with(ending));
        found.and_then(|(_, task)| task).ok_or_else(|| {
            let problem = format!("`{class}` has a head that the zoo does not have");
            ConfigError::new("architectures", problem)
        })
    }

    /// The class of the same family for this task: `BertModel` gives `BertForSequenceClassification`.
    fn class_like(self, class: &str) -> String {
        let mut endings = CLASS_ENDINGS.into_iter();
        let stem = endings.find_map(|(ending, _)| class.strip_suffix(ending));
        // Where several classes have the task, the last is the plain one.
        let mut own = CLASS_ENDINGS
            .into_iter()
            .filter(|(_, task)| *task == Some(self));
        let ending = own.next_back().map_or("Model", |(ending, _)| ending);
        match Self::from_class(class) {
            Ok(task) if task == self => class.to_owned(),
            _ => format!("{}{ending}", stem.unwrap_or(class)),
        }
    }
}

/// How names of classes end, and what they are for.
const CLASS_ENDINGS: [(&str, Option<Task>); 13] = [
    ("LMHeadModel", Some(Task::Language)),
    ("ForConditionalGeneration", Some(Task::Language)),
    ("ForBlankInfilling", Some(Task::Language)),
    ("ForCausalLM", Some(Task::Language)),
    ("ForMaskedLM", Some(Task::MaskedLanguage)),
    ("ForPreTraining", Some(Task::Pretraining)),
    ("ForNextSentencePrediction", Some(Task::NextSentence)),
    ("ForSequenceClassification", Some(Task::Sequence)),
    ("ForTokenClassification", Some(Task::Token)),
    ("ForQuestionAnswering", Some(Task::Span)),
    ("EncoderModel", Some(Task::Encoder)),
    ("DoubleHeadsModel", None),
    ("Model", Some(Task::Base)),
];

/// What the configurations of all families have in common.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Common {
    /// The class of the `transformers` library, at most one.
    pub architectures: Option<Vec<String>>,
    /// Labels by number.
    pub id2label: Option<Map<String, Value>>,
    /// How many labels, where they have no names.
    pub num_labels: Option<usize>,
    /// The id of the padding token; below 0 for none.
    pub pad_token_id: Option<i64>,
    /// The id of the token that ends a text.
    pub eos_token_id: Option<Value>,
    /// The id of the token that the decoder of an encoder–decoder begins with.
    pub decoder_start_token_id: Option<usize>,
    /// The share of values set to zero in training before a classifier.
    pub classifier_dropout: Option<f64>,
}

impl Common {
    /// How many labels a classifier has: two unless it is said.
    pub fn n_labels(&self) -> usize {
        let named = self.id2label.as_ref().map(Map::len);
        named.or(self.num_labels).unwrap_or(2)
    }

    /// The id of the padding token, if there is one.
    pub fn padding_id(&self) -> Option<usize> {
        usize::try_from(self.pad_token_id?).ok()
    }

    /// The id of the token that ends a text, the first if there are several.
    pub fn end_id(&self) -> Option<usize> {
        let id = match self.eos_token_id.as_ref()? {
            Value::Array(ids) => ids.first()?.as_u64(),
            id => id.as_u64(),
        };
        usize::try_from(id?).ok()
    }
}

/// A model that can be built, loaded and saved: the component tree, and how its configuration and its
/// parameters are written.
#[derive(Clone, Debug)]
pub struct Architecture {
    /// The components.
    pub transformer: TransformerConfig,
    /// The names of its parameters on disk.
    pub names: Names,
    /// The contents of `config.json`.
    pub json: Map<String, Value>,
}

/// The `model_type` of a component tree without a family.
pub const OWN_MODEL_TYPE: &str = "burn-zoo";

impl From<TransformerConfig> for Architecture {
    /// A tree of no family, written as it is.
    fn from(transformer: TransformerConfig) -> Self {
        let tree = serde_json::to_value(&transformer).expect("a configuration is plain data");
        let json = [
            ("model_type".to_owned(), OWN_MODEL_TYPE.into()),
            ("transformer".to_owned(), tree),
        ];
        Self {
            transformer,
            names: Names::new(),
            json: json.into_iter().collect(),
        }
    }
}

impl Architecture {
    /// Reads the contents of a `config.json`, of one of the registered families or of the zoo's own
    /// component trees.
    ///
    /// # Errors
    ///
    /// When a field is missing, unknown to the zoo, or does not fit, with its name.
    pub fn from_json(json: Map<String, Value>) -> Result<Self, ConfigError> {
        let model_type = match json.get("model_type") {
            Some(Value::String(model_type)) => model_type.clone(),
            _ => return Err(ConfigError::new("model_type", "is missing")),
        };
        let architecture = if model_type == OWN_MODEL_TYPE {
            let tree = json.get("transformer").cloned().unwrap_or_default();
            let transformer = parse(tree).map_err(|error| error.within("transformer"))?;
            Self {
                transformer,
                names: Names::new(),
                json,
            }
        } else {
            let family = find(&model_type).ok_or_else(|| unknown(&model_type))?;
            let (transformer, names) = (family.build)(&json)?;
            Self {
                transformer,
                names,
                json,
            }
        };
        architecture.transformer.validate()?;
        Ok(architecture)
    }

    /// The same model with the head of another task, for labels of these names where the head has any.
    ///
    /// # Errors
    ///
    /// When the family has no such head.
    pub fn with_task(&self, task: Task, labels: &[String]) -> Result<Self, ConfigError> {
        let mut json = self.json.clone();
        let named = labels.iter().enumerate();
        let id2label = named
            .clone()
            .map(|(id, label)| (id.to_string(), label.as_str().into()));
        let label2id = named.map(|(id, label)| (label.clone(), id.into()));
        json.remove("num_labels");
        json.remove("problem_type");
        json.insert("id2label".to_owned(), Value::Object(id2label.collect()));
        json.insert("label2id".to_owned(), Value::Object(label2id.collect()));
        if json.get("model_type").and_then(Value::as_str) == Some(OWN_MODEL_TYPE) {
            let head = own_head(&self.transformer, task, labels.len())?;
            let transformer = self.transformer.clone().with_head(head);
            let tree = serde_json::to_value(&transformer).expect("a configuration is plain data");
            json.insert("transformer".to_owned(), tree);
        } else {
            let common = self.common().architectures.unwrap_or_default();
            let model_type = json.get("model_type").and_then(Value::as_str);
            let family = model_type.and_then(find);
            let own = family.map_or("Model", |family| family.class);
            let class = common.first().map_or(own, String::as_str);
            let class = task.class_like(class);
            json.insert("architectures".to_owned(), vec![class].into());
        }
        Self::from_json(json)
    }

    /// The names of its labels, by number.
    pub fn labels(&self) -> Vec<String> {
        let labels = self.common().id2label.unwrap_or_default();
        let mut labels: Vec<(usize, String)> = labels
            .into_iter()
            .filter_map(|(id, label)| Some((id.parse().ok()?, label.as_str()?.to_owned())))
            .collect();
        labels.sort();
        labels.into_iter().map(|(_, label)| label).collect()
    }

    /// What its configuration has in common with those of all families.
    pub fn common(&self) -> Common {
        parse(Value::Object(self.json.clone())).unwrap_or_default()
    }

    /// The same for a model that is yet to be trained: the class is the family's own where none is
    /// named, and so `config.json` will name it; and of a family's fields none may be misspelt.
    ///
    /// # Errors
    ///
    /// As [`from_json`](Self::from_json), and for fields that the family does not have.
    pub fn for_training(mut json: Map<String, Value>) -> Result<Self, ConfigError> {
        if let Some(Value::String(model_type)) = json.get("model_type")
            && let Some(family) = find(model_type)
        {
            family.check_fields(&json)?;
            json.entry("architectures")
                .or_insert_with(|| vec![family.class].into());
        }
        Self::from_json(json)
    }
}

/// The head that a component tree without a family gets for a task.
fn own_head(
    transformer: &TransformerConfig,
    task: Task,
    n_labels: usize,
) -> Result<HeadConfig, ConfigError> {
    Ok(match task {
        Task::Base => HeadConfig::None,
        Task::Language if transformer.head.language().is_some() => transformer.head.clone(),
        Task::Language | Task::MaskedLanguage => HeadConfig::tied(),
        Task::Sequence => HeadConfig::Sequence {
            n_labels,
            state: match transformer.stack.is_decoder() {
                true => SequenceState::Last { padding_id: None },
                false => SequenceState::First,
            },
            dense: None,
            bias: true,
            dropout: 0.0,
        },
        Task::Token => HeadConfig::Token {
            n_labels,
            dropout: 0.0,
        },
        Task::Span => HeadConfig::Span,
        Task::Encoder | Task::Pretraining | Task::NextSentence => {
            let problem = format!("a component tree of its own gets no {task:?} head");
            return Err(ConfigError::new("transformer.head", problem));
        }
    })
}

fn unknown(model_type: &str) -> ConfigError {
    let mut known: Vec<&str> = families().iter().map(|family| family.model_type).collect();
    known.push(OWN_MODEL_TYPE);
    ConfigError::new(
        "model_type",
        format!(
            "unknown variant `{model_type}`, expected one of {}",
            known.join(", ")
        ),
    )
}

/// Reads a value, naming the field that does not fit.
pub fn parse<T: DeserializeOwned>(value: Value) -> Result<T, ConfigError> {
    serde_path_to_error::deserialize(value).map_err(|error| {
        // Flattened fields lose their path, and the root's is a dot.
        let path = error.path().to_string();
        let field = path.trim_end_matches('.');
        ConfigError::new(field, error.inner().to_string())
    })
}

/// The non-linearity that the `transformers` library calls so.
pub fn activation(field: &str, name: &str) -> Result<Activation, ConfigError> {
    Ok(match name {
        "relu" => Activation::Relu,
        "gelu" => Activation::Gelu,
        "gelu_new" | "gelu_pytorch_tanh" | "gelu_fast" | "gelu_accurate" => Activation::GeluTanh,
        "silu" | "swish" => Activation::Silu,
        "tanh" => Activation::Tanh,
        _ => {
            let problem = format!(
                "unknown activation `{name}`: use relu, gelu, gelu_new, gelu_pytorch_tanh, silu or \
                 tanh"
            );
            return Err(ConfigError::new(field, problem));
        }
    })
}

/// A size that was published.
#[derive(Clone, Debug)]
pub struct Preset {
    /// What it is called, such as `bloom-176b`.
    pub name: &'static str,
    /// How many parameters its authors say it has.
    pub published_parameters: Option<u64>,
    /// Why the count differs, or what is a reconstruction.
    pub note: Option<&'static str>,
    /// The contents of `config.json`.
    pub json: Map<String, Value>,
}

impl Preset {
    /// A size of a family, as its configuration.
    pub fn new<C: FamilyConfig>(name: &'static str, published: u64, config: &C) -> Self {
        let json = match serde_json::to_value(config) {
            Ok(Value::Object(json)) => json,
            _ => Map::new(),
        };
        let header = [
            ("model_type".to_owned(), C::MODEL_TYPE.into()),
            ("architectures".to_owned(), vec![C::CLASS].into()),
        ];
        Self {
            name,
            published_parameters: Some(published),
            note: None,
            json: header.into_iter().chain(json).collect(),
        }
    }

    /// The same with a remark on its count or its source.
    pub fn note(mut self, note: &'static str) -> Self {
        self.note = Some(note);
        self
    }

    /// The model.
    pub fn architecture(&self) -> Result<Architecture, ConfigError> {
        Architecture::from_json(self.json.clone())
    }
}

/// The configuration of a family, with the fields of its `config.json`.
pub trait FamilyConfig: Serialize + DeserializeOwned {
    /// `model_type` in `config.json`.
    const MODEL_TYPE: &'static str;
    /// What people call it.
    const NAME: &'static str;
    /// The class of a model as it is pre-trained.
    const CLASS: &'static str;

    /// The components and the names for a task.
    fn build(&self, task: Task, common: &Common)
    -> Result<(TransformerConfig, Names), ConfigError>;

    /// Values of fields that a `config.json` leaves out, where [`Default`] has others.
    fn left_out() -> Value {
        Value::Null
    }

    /// The sizes that were published.
    fn presets() -> Vec<Preset> {
        Vec::new()
    }
}

/// Refuses sizes beyond any model's, before something as large is built.
fn check_sizes(json: &Map<String, Value>) -> Result<(), ConfigError> {
    for (field, value) in json {
        let counts_parts = ["layer", "expert"].iter().any(|part| field.contains(part));
        let limit = match field.as_str() {
            "vocab_size" | "seq_length" | "n_positions" | "context_length" => 1 << 30,
            "max_position_embeddings" => 1 << 30,
            field if field.contains("heads") || field == "n_head" => 1 << 16,
            _ if counts_parts => 1 << 14,
            _ => 1 << 24,
        };
        if value.as_u64().is_some_and(|value| value > limit) {
            let problem = format!("must be at most {limit}, got {value}");
            return Err(ConfigError::new(field, problem));
        }
    }
    Ok(())
}

/// Reads the fields of a family.
fn parse_fields<C: FamilyConfig>(json: Map<String, Value>) -> Result<C, ConfigError> {
    check_sizes(&json)?;
    let mut fields = match C::left_out() {
        Value::Object(fields) => fields,
        _ => Map::new(),
    };
    fields.extend(json);
    let read = |fields: &Map<String, Value>| parse::<C>(Value::Object(fields.clone()));
    read(&fields).map_err(|error| {
        // Flattened fields do not tell where they are wrong: it is the one without which all is well.
        let is_culprit = |field: &&String| {
            let mut others = fields.clone();
            others.remove(*field);
            read(&others).is_ok()
        };
        match fields.keys().find(is_culprit) {
            Some(field) if error.field.is_empty() => error.within(field),
            _ => error,
        }
    })
}

type Build = fn(&Map<String, Value>) -> Result<(TransformerConfig, Names), ConfigError>;

/// A family, whatever the type of its configuration.
#[derive(Clone, Copy)]
pub struct Family {
    /// `model_type` in `config.json`.
    pub model_type: &'static str,
    /// What people call it.
    pub name: &'static str,
    /// The class of a model as it is pre-trained.
    pub class: &'static str,
    build: Build,
    fields: fn() -> Vec<String>,
    presets: fn() -> Vec<Preset>,
}

impl Family {
    /// The family of a configuration.
    pub const fn of<C: FamilyConfig>() -> Self {
        Self {
            model_type: C::MODEL_TYPE,
            name: C::NAME,
            class: C::CLASS,
            build: |json| {
                let common: Common = parse(Value::Object(json.clone()))?;
                let class = common
                    .architectures
                    .as_ref()
                    .and_then(|names| names.first());
                let task = Task::from_class(class.map_or(C::CLASS, String::as_str))?;
                parse_fields::<C>(json.clone())?.build(task, &common)
            },
            fields: || {
                let config = parse_fields::<C>(Map::new());
                match config.map(|config| serde_json::to_value(config)) {
                    Ok(Ok(Value::Object(fields))) => fields.keys().cloned().collect(),
                    _ => Vec::new(),
                }
            },
            presets: C::presets,
        }
    }

    /// Refuses fields that are neither the family's nor every family's.
    fn check_fields(&self, json: &Map<String, Value>) -> Result<(), ConfigError> {
        const EVERYWHERE: [&str; 11] = [
            "model_type",
            "architectures",
            "id2label",
            "num_labels",
            "pad_token_id",
            "eos_token_id",
            "classifier_dropout",
            "rope_theta",
            "rope_scaling",
            "rope_parameters",
            "partial_rotary_factor",
        ];
        let known = (self.fields)();
        let is_known =
            |field: &String| EVERYWHERE.contains(&field.as_str()) || known.contains(field);
        // A configuration without defaults cannot be asked for its fields; it checks them itself.
        match json
            .keys()
            .find(|field| !known.is_empty() && !is_known(field))
        {
            None => Ok(()),
            Some(field) => {
                let problem = format!("is no field of {}: {}", self.name, known.join(", "));
                Err(ConfigError::new(field, problem))
            }
        }
    }

    /// The sizes that were published.
    pub fn presets(&self) -> Vec<Preset> {
        (self.presets)()
    }
}

static FAMILIES: LazyLock<RwLock<Vec<Family>>> =
    LazyLock::new(|| RwLock::new(crate::families::all()));

/// Adds a family for the whole process: models of its `model_type` then load, save, train and are
/// listed like the zoo's own. One of the same `model_type` takes its place.
pub fn register(family: Family) {
    let mut families = FAMILIES.write().unwrap_or_else(PoisonError::into_inner);
    families.retain(|known| known.model_type != family.model_type);
    families.push(family);
}

/// All families.
pub fn families() -> Vec<Family> {
    FAMILIES
        .read()
        .unwrap_or_else(PoisonError::into_inner)
        .clone()
}

/// The family with a `model_type`.
pub fn find(model_type: &str) -> Option<Family> {
    families()
        .into_iter()
        .find(|family| family.model_type == model_type)
}

/// The preset with a name, and its family.
pub fn find_preset(name: &str) -> Option<(Family, Preset)> {
    families().into_iter().find_map(|family| {
        let mut presets = family.presets().into_iter();
        presets
            .find(|preset| preset.name == name)
            .map(|preset| (family, preset))
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// What a `config.json` says is dropped: of sub-layers, of attention, and before a classifier.
    #[test]
    fn dropout_is_read_from_the_fields_of_each_family() {
        let bert = json!({ "hidden_dropout_prob": 0.2, "attention_probs_dropout_prob": 0.3 });
        let bert_head = json!({ "hidden_dropout_prob": 0.2, "attention_probs_dropout_prob": 0.3,
            "classifier_dropout": 0.4 });
        let gpt2 = json!({ "resid_pdrop": 0.2, "attn_pdrop": 0.3, "classifier_dropout": 0.4 });
        let hidden = json!({ "hidden_dropout": 0.2, "attention_dropout": 0.3 });
        let neo =
            json!({ "resid_dropout": 0.2, "attention_dropout": 0.3, "classifier_dropout": 0.0 });
        let t5 = json!({ "dropout_rate": 0.2, "classifier_dropout": 0.4 });
        for (model_type, class, fields, expected) in [
            (
                "bert",
                "BertForSequenceClassification",
                &bert,
                [0.2, 0.3, 0.2],
            ),
            (
                "bert",
                "BertForTokenClassification",
                &bert_head,
                [0.2, 0.3, 0.4],
            ),
            (
                "roberta",
                "RobertaForSequenceClassification",
                &bert_head,
                [0.2, 0.3, 0.4],
            ),
            (
                "megatron-bert",
                "MegatronBertForSequenceClassification",
                &bert,
                [0.2, 0.3, 0.2],
            ),
            (
                "esm",
                "EsmForSequenceClassification",
                &bert,
                [0.2, 0.3, 0.2],
            ),
            ("gpt2", "GPT2ForTokenClassification", &gpt2, [0.2, 0.3, 0.4]),
            (
                "gpt2",
                "GPT2ForSequenceClassification",
                &gpt2,
                [0.2, 0.3, 0.0],
            ),
            (
                "gpt_neo",
                "GPTNeoForTokenClassification",
                &neo,
                [0.2, 0.3, 0.0],
            ),
            (
                "gpt_neox",
                "GPTNeoXForTokenClassification",
                &hidden,
                [0.2, 0.3, 0.1],
            ),
            (
                "bloom",
                "BloomForTokenClassification",
                &hidden,
                [0.2, 0.3, 0.2],
            ),
            (
                "bloom",
                "BloomForSequenceClassification",
                &hidden,
                [0.2, 0.3, 0.0],
            ),
            (
                "llama",
                "LlamaForSequenceClassification",
                &hidden,
                [0.0, 0.3, 0.0],
            ),
            ("t5", "T5ForSequenceClassification", &t5, [0.2, 0.2, 0.4]),
        ] {
            let mut json = fields.as_object().unwrap().clone();
            json.insert("model_type".to_owned(), model_type.into());
            json.insert("architectures".to_owned(), vec![class].into());
            let transformer = Architecture::from_json(json).unwrap().transformer;
            let before_labels = match transformer.head {
                HeadConfig::Sequence { dropout, .. } | HeadConfig::Token { dropout, .. } => dropout,
                ref other => panic!("{class}: {other:?}"),
            };
            let stacks = transformer.encoder.iter().chain([&transformer.stack]);
            for block in stacks.flat_map(|stack| &stack.blocks) {
                let cross = block.cross_attention.as_ref();
                let found = [
                    block.dropout,
                    block.attention.dropout.unwrap(),
                    before_labels,
                ];
                assert_eq!(found, expected, "{class}");
                assert!(
                    cross.is_none_or(|cross| cross.dropout == Some(expected[1])),
                    "{class}"
                );
            }
            let json = serde_json::to_value(transformer.without_dropout()).unwrap();
            for share in ["0.1", "0.2", "0.3", "0.4"] {
                let left = format!("dropout\":{share}");
                assert!(!json.to_string().contains(&left), "{class}: {json}");
            }
        }
    }
}
