//! Low-rank adapters (LoRA: Hu et al. 2021, arXiv:2106.09685) by pattern, alone on disk in the layout of the
//! `peft` library.
//!
//! ```text
//! adapter_config.json  adapter_model.safetensors    what `peft` reads and writes
//! config.json                                       the model that they belong to, head included
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use burn::module::{Module, ModuleMapper, Param};
use burn::tensor::{Device, Tensor, TensorData};
use burn_zoo_nn::{
    ConfigError, Transformer,
    linear::{Linear, Lora, LoraConfig},
};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{
    directory::{self, DirectoryError},
    family::{Architecture, Task},
    files,
    names::{Layout, Part, kind},
    weights::{self, ModulePath, ParameterValue, Tensors, WeightsError},
};

/// The file name of an adapter's configuration.
pub const CONFIG: &str = "adapter_config.json";
/// The file name of an adapter's weights.
pub const WEIGHTS: &str = "adapter_model.safetensors";

/// What makes an adapter unusable.
#[derive(Debug, thiserror::Error)]
pub enum AdapterError {
    /// A target matches no linear layer.
    #[error("the target `{target}` matches no linear layer; there are {}", there.join(", "))]
    NoSuchLayer {
        /// The target.
        target: String,
        /// The kinds of layers that there are.
        there: Vec<String>,
    },
    /// A file cannot be read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the operating system says.
        source: std::io::Error,
    },
    /// `adapter_config.json` is no such configuration, or of a kind that the zoo does not have.
    #[error("{}: {problem}", path.display())]
    Config {
        /// The file.
        path: PathBuf,
        /// The field and what is wrong with it.
        problem: String,
    },
    /// The weights do not fit.
    #[error("{} does not fit the model: {}", path.display(), problems.join("; "))]
    Mismatch {
        /// The file.
        path: PathBuf,
        /// Each tensor that is missing or unexpected.
        problems: Vec<String>,
    },
    /// The weights cannot be read or written.
    #[error(transparent)]
    Weights(#[from] WeightsError),
}

/// Whether a linear layer's path is one that a target means: its last components are the target's, where `*`
/// stands for any one. `query` and `attention.query` both mean `stack.blocks.0.attention.query`.
pub fn is_target(path: &str, target: &str) -> bool {
    let (mut path, mut target) = (path.rsplit('.'), target.rsplit('.'));
    target.all(|wanted| {
        path.next()
            .is_some_and(|found| wanted == "*" || wanted == found)
    })
}

/// Gives the linear layers of `model` that `targets` mean a new adapter, and returns their paths. A target may be
/// in our names or in those of the checkpoint.
///
/// # Errors
///
/// When a target matches nothing.
pub fn add(
    model: &mut Transformer,
    architecture: &Architecture,
    config: &LoraConfig,
    targets: &[String],
) -> Result<Vec<String>, AdapterError> {
    let mut linears = model.linears();
    let means = |path: &str, target: &String| {
        is_target(path, target)
            || theirs(architecture, path).is_some_and(|(theirs, _)| is_target(&theirs, target))
    };
    for target in targets {
        if !linears.iter().any(|(path, _)| means(path, target)) {
            let kinds: BTreeSet<String> = linears.iter().map(|(path, _)| kind(path)).collect();
            return Err(AdapterError::NoSuchLayer {
                target: target.clone(),
                there: kinds.into_iter().collect(),
            });
        }
    }
    let mut adapted = Vec::new();
    for (path, linear) in &mut linears {
        if targets.iter().any(|target| means(path, target)) {
            linear.adapt(config);
            adapted.push(path.clone());
        }
    }
    Ok(adapted)
}

/// Adds each adapter to its matrix and drops it.
pub fn merge(model: &mut Transformer) {
    for (_, linear) in model.linears() {
        linear.merge();
    }
}

/// The name of the checkpoint's module that a linear layer lies in, and how.
fn theirs(architecture: &Architecture, path: &str) -> Option<(String, Layout)> {
    let source = architecture.names.source(&format!("{path}.weight"))?;
    let module = source.name.strip_suffix(".weight")?.to_owned();
    Some((module, source.layout))
}

/// `adapter_config.json`, as far as the zoo reads it.
#[derive(Debug, Deserialize, Serialize)]
struct Fields {
    peft_type: String,
    #[serde(default)]
    task_type: Option<String>,
    #[serde(default)]
    base_model_name_or_path: Option<String>,
    r: usize,
    lora_alpha: f64,
    #[serde(default)]
    lora_dropout: f64,
    #[serde(default)]
    target_modules: Value,
    #[serde(default)]
    modules_to_save: Option<Vec<String>>,
    #[serde(default)]
    rank_pattern: BTreeMap<String, usize>,
    #[serde(default)]
    alpha_pattern: BTreeMap<String, f64>,
    #[serde(default)]
    use_rslora: bool,
    #[serde(default)]
    use_dora: bool,
    #[serde(default = "no_bias")]
    bias: String,
    #[serde(default)]
    fan_in_fan_out: bool,
    #[serde(default = "yes")]
    inference_mode: bool,
}

fn no_bias() -> String {
    "none".to_owned()
}

fn yes() -> bool {
    true
}

/// The value that a table gives a module: of the first name that the module's ends with.
fn by_module<T: Copy>(table: &BTreeMap<String, T>, module: &str) -> Option<T> {
    let found = table.iter().find(|(name, _)| is_target(module, name));
    found.map(|(_, value)| *value)
}

impl Fields {
    /// What the product of a module's factors is multiplied by.
    fn scale(&self, module: &str) -> f64 {
        let alpha = by_module(&self.alpha_pattern, module).unwrap_or(self.lora_alpha);
        let rank = by_module(&self.rank_pattern, module).unwrap_or(self.r) as f64;
        match self.use_rslora {
            true => alpha / rank.sqrt(),
            false => alpha / rank,
        }
    }

    /// Refuses what changes the outputs and is not there.
    fn check(&self) -> Result<(), String> {
        if self.peft_type != "LORA" {
            return Err(format!("peft_type: must be LORA, got {}", self.peft_type));
        }
        if self.use_dora {
            return Err("use_dora: is not there".to_owned());
        }
        if self.bias != "none" {
            return Err(format!("bias: must be none, got {}", self.bias));
        }
        Ok(())
    }
}

/// A matrix by rows, and its shape.
type Matrix = (Vec<usize>, Vec<f32>);

/// Collects the factors of the linear layers that share one tensor of the checkpoint.
struct Shared {
    layout: Layout,
    /// For each layer: its part, `a` `[d_input, rank]`, `b` `[rank, d_output]`, and the scale.
    layers: Vec<(Part, Matrix, Matrix, f64)>,
}

impl Shared {
    /// What the product is multiplied by: the first layer's, which the others' factors are adjusted to.
    fn scale(&self) -> f64 {
        self.layers[0].3
    }

    /// The factors as `peft` has them, `lora_A` `[rank, d_input]` and `lora_B` `[d_output, rank]`.
    ///
    /// Layers that are parts of one tensor have factors of their own, so the whole has the sum of their ranks:
    /// `A` is theirs one below the other, and `B` has each in its own rows and columns.
    fn factors(&self) -> (Matrix, Matrix) {
        let d_input = self.layers[0].1.0[0];
        let rank: usize = self.layers.iter().map(|(_, a, ..)| a.0[1]).sum();
        let part_width = self.layers[0].2.0[1];
        let d_output = part_width * self.layers[0].0.of();
        let (mut whole_a, mut whole_b) = (vec![0.0; rank * d_input], vec![0.0; d_output * rank]);
        let mut first = 0;
        for (part, (a_shape, a), (b_shape, b), scale) in &self.layers {
            let (own_rank, width) = (a_shape[1], b_shape[1]);
            let relative = (scale / self.scale()) as f32;
            for r in 0..own_rank {
                for input in 0..d_input {
                    whole_a[(first + r) * d_input + input] = a[input * own_rank + r];
                }
                for output in 0..width {
                    let row = part.position(output, width);
                    whole_b[row * rank + first + r] = b[r * width + output] * relative;
                }
            }
            first += own_rank;
        }
        (
            (vec![rank, d_input], whole_a),
            (vec![d_output, rank], whole_b),
        )
    }
}

/// What an adapter directory holds besides the adapter.
#[derive(Clone, Debug)]
pub struct Saved<'a> {
    /// Ranks and scale of the adapters.
    pub config: &'a LoraConfig,
    /// The directory of the model that they belong to.
    pub base: &'a Path,
    /// Parameters that were trained besides, by path, such as those of a new head.
    pub trained: &'a [String],
}

/// Writes the adapters of `model` alone, with the parameters that were trained besides.
///
/// # Errors
///
/// When a file cannot be written, or a parameter has no name.
pub fn save(
    model: &Transformer,
    architecture: &Architecture,
    saved: &Saved<'_>,
    directory: &Path,
) -> Result<(), DirectoryError> {
    std::fs::create_dir_all(directory).map_err(|source| AdapterError::Io {
        path: directory.to_owned(),
        source,
    })?;
    let mut modules: BTreeMap<String, Shared> = BTreeMap::new();
    let mut model = model.clone();
    for (path, linear) in model.linears() {
        let Some(lora) = &linear.lora else { continue };
        let named = theirs(architecture, &path);
        let (module, layout) = named.ok_or(AdapterError::Weights(WeightsError::Unnamed(path)))?;
        let shared = modules.entry(module).or_insert_with(|| Shared {
            layout,
            layers: Vec::new(),
        });
        let (a, b) = (matrix(&lora.a), matrix(&lora.b));
        shared.layers.push((layout.part, a, b, lora.scale()));
    }

    let rank = saved.config.rank;
    let (mut tensors, mut rank_pattern, mut alpha_pattern) =
        (Tensors::new(), BTreeMap::new(), BTreeMap::new());
    for (module, shared) in &modules {
        let (a, b) = shared.factors();
        let (whole_rank, scale) = (a.0[0], shared.scale());
        if whole_rank != rank || scale != saved.config.scale() {
            rank_pattern.insert(module.clone(), whole_rank);
            alpha_pattern.insert(module.clone(), scale * whole_rank as f64);
        }
        tensors.insert(format!("base_model.model.{module}.lora_A.weight"), a);
        tensors.insert(format!("base_model.model.{module}.lora_B.weight"), b);
    }
    let besides = Besides(saved.trained.iter().cloned().collect());
    let mut to_save = BTreeSet::new();
    for (name, tensor) in besides.collect(&model, architecture)? {
        if let Some((module, _)) = name.rsplit_once('.') {
            to_save.insert(module.rsplit('.').next().unwrap_or(module).to_owned());
        }
        tensors.insert(format!("base_model.model.{name}"), tensor);
    }

    // Whole names: the last words of one may be those of others too.
    let targets: Vec<&str> = modules.keys().map(String::as_str).collect();
    let fields = Fields {
        peft_type: "LORA".to_owned(),
        task_type: task_type(architecture),
        base_model_name_or_path: Some(saved.base.display().to_string()),
        r: rank,
        lora_alpha: saved.config.alpha,
        lora_dropout: saved.config.dropout,
        target_modules: targets.into(),
        modules_to_save: (!to_save.is_empty()).then(|| to_save.into_iter().collect()),
        rank_pattern,
        alpha_pattern,
        use_rslora: false,
        use_dora: false,
        bias: no_bias(),
        fan_in_fan_out: modules.values().any(|shared| !shared.layout.is_transposed),
        inference_mode: true,
    };
    weights::write(&tensors, &directory.join(WEIGHTS)).map_err(AdapterError::from)?;
    directory::save_config(architecture, directory)?;
    let json = serde_json::to_string_pretty(&fields).expect("plain data");
    let path = directory.join(CONFIG);
    files::replace_with(&path, json).map_err(|source| AdapterError::Io { path, source })?;
    Ok(())
}

/// The values of a matrix, by rows.
fn matrix(param: &Param<Tensor<2>>) -> Matrix {
    let shape = param.lazy_shape().to_vec();
    let data = param
        .val()
        .into_data()
        .convert_dtype(burn::tensor::DType::F32);
    (shape, data.try_to_vec().expect("just converted"))
}

/// What `peft` calls the task of a model.
fn task_type(architecture: &Architecture) -> Option<String> {
    let classes = architecture.common().architectures?;
    let task = match Task::from_class(classes.first()?).ok()? {
        Task::Language if architecture.transformer.encoder.is_some() => "SEQ_2_SEQ_LM",
        Task::Language => "CAUSAL_LM",
        Task::Sequence => "SEQ_CLS",
        Task::Token => "TOKEN_CLS",
        Task::Span => "QUESTION_ANS",
        Task::Base | Task::Encoder => "FEATURE_EXTRACTION",
        Task::MaskedLanguage | Task::Pretraining | Task::NextSentence => return None,
    };
    Some(task.to_owned())
}

/// Takes the parameters of these paths.
struct Besides(BTreeSet<String>);

impl ParameterValue for &Besides {
    fn of<const D: usize>(&self, path: &str, param: &Param<Tensor<D>>) -> Option<Tensor<D>> {
        self.0.contains(path).then(|| param.val())
    }
}

impl Besides {
    fn collect(
        &self,
        model: &Transformer,
        architecture: &Architecture,
    ) -> Result<Tensors, AdapterError> {
        Ok(weights::collect(model, &architecture.names, self)?)
    }
}

/// Whether a directory holds an adapter.
pub fn is_there(directory: &Path) -> bool {
    directory.join(CONFIG).exists()
}

/// Reads an adapter's configuration.
fn fields(directory: &Path) -> Result<Fields, AdapterError> {
    let path = directory.join(CONFIG);
    let text = std::fs::read_to_string(&path).map_err(|source| AdapterError::Io {
        path: path.clone(),
        source,
    })?;
    let fields: Result<Fields, String> =
        serde_json::from_str(&text).map_err(|error| error.to_string());
    fields
        .and_then(|fields| fields.check().map(|()| fields))
        .map_err(|problem| AdapterError::Config { path, problem })
}

/// The directory of the model that an adapter belongs to, which is named from where the command runs or from the
/// adapter's own directory.
///
/// # Errors
///
/// When it is not named, or not there.
pub fn base(directory: &Path) -> Result<PathBuf, AdapterError> {
    let problem = |problem: String| AdapterError::Config {
        path: directory.join(CONFIG),
        problem,
    };
    let named = fields(directory)?.base_model_name_or_path;
    let named = named.ok_or_else(|| problem("base_model_name_or_path: is missing".to_owned()))?;
    let candidates = [PathBuf::from(&named), directory.join(&named)];
    let found = candidates.into_iter().find(|path| path.is_dir());
    found.ok_or_else(|| {
        problem(format!(
            "base_model_name_or_path: there is no directory {named}; write where the model is"
        ))
    })
}

/// Reads an adapter and the model that it belongs to. The adapter stays beside the matrices: see [`merge`].
///
/// # Errors
///
/// As [`directory::load`] for the model, and when the adapter is of another kind or does not fit it.
pub fn load(
    directory: &Path,
    device: &Device,
) -> Result<(Transformer, Architecture), DirectoryError> {
    let base = base(directory)?;
    let architecture = match directory.join(directory::CONFIG).exists() {
        true => directory::load_config(directory)?,
        false => with_head(directory::load_config(&base)?, directory)?,
    };
    let (mut model, architecture, new) = directory::load_body(architecture, &base, device)?;
    let given = apply(&mut model, &architecture, directory)?;
    let missing: Vec<String> = new
        .into_iter()
        .filter(|path| !given.contains(path))
        .map(|path| format!("`{path}` is neither in it nor in {}", base.display()))
        .collect();
    match missing.is_empty() {
        true => Ok((model, architecture)),
        false => Err(AdapterError::Mismatch {
            path: directory.join(WEIGHTS),
            problems: missing,
        }
        .into()),
    }
}

/// The architecture with the head that the adapter's task needs, where `peft` left no `config.json`.
fn with_head(architecture: Architecture, directory: &Path) -> Result<Architecture, DirectoryError> {
    let fields = fields(directory)?;
    let task = match fields.task_type.as_deref() {
        Some("SEQ_CLS") => Task::Sequence,
        Some("TOKEN_CLS") => Task::Token,
        Some("QUESTION_ANS") => Task::Span,
        _ => return Ok(architecture),
    };
    let tensors = weights::read(&directory.join(WEIGHTS)).map_err(AdapterError::from)?;
    let is_classifier = |name: &str| {
        ["classifier.weight", "score.weight", "out_proj.weight"]
            .iter()
            .any(|ending| name.ends_with(ending))
    };
    let classifier = tensors.iter().find(|(name, _)| is_classifier(name));
    let n_labels = classifier.map_or(2, |(_, (shape, _))| shape[0]);
    let labels: Vec<String> = (0..n_labels)
        .map(|label| format!("LABEL_{label}"))
        .collect();
    let problem = |error: ConfigError| AdapterError::Config {
        path: directory.join(CONFIG),
        problem: error.to_string(),
    };
    Ok(architecture.with_task(task, &labels).map_err(problem)?)
}

/// Puts the adapter in `directory` beside the matrices of `model`, and returns the paths of parameters that it
/// gives whole.
///
/// # Errors
///
/// When it cannot be read, is of a kind that the zoo does not have, or does not fit the model.
pub fn apply(
    model: &mut Transformer,
    architecture: &Architecture,
    directory: &Path,
) -> Result<BTreeSet<String>, AdapterError> {
    let fields = fields(directory)?;
    let path = directory.join(WEIGHTS);
    let mut tensors: BTreeMap<String, Matrix> = weights::read(&path)?
        .into_iter()
        .map(|(name, tensor)| {
            let name = name.strip_prefix("base_model.model.").unwrap_or(&name);
            // The matrix beside the factors, which `peft` saves where it belongs to the vocabulary.
            (name.replace(".base_layer.", "."), tensor)
        })
        .collect();
    let mut used = BTreeSet::new();
    for (ours, linear) in model.linears() {
        let Some((module, layout)) = theirs(architecture, &ours) else {
            continue;
        };
        let names = ["lora_A", "lora_B"].map(|factor| format!("{module}.{factor}.weight"));
        let [Some(a), Some(b)] = names.each_ref().map(|name| tensors.get(name)) else {
            continue;
        };
        linear.lora = Some(
            factors(a, b, linear, layout.part, &fields, &module).ok_or_else(|| {
                AdapterError::Mismatch {
                    path: path.clone(),
                    problems: vec![format!(
                        "`{module}` has factors {:?} and {:?}, for a matrix {:?}",
                        a.0,
                        b.0,
                        linear.dims()
                    )],
                }
            })?,
        );
        used.extend(names);
    }
    tensors.retain(|name, _| !used.contains(name));
    let given = take_whole(model, architecture, &mut tensors);
    match tensors.is_empty() {
        true => Ok(given),
        false => Err(AdapterError::Mismatch {
            path,
            problems: tensors
                .keys()
                .map(|name| format!("`{name}` is unexpected"))
                .collect(),
        }),
    }
}

/// Our factors from `lora_A` `[rank, d_input]` and `lora_B` `[d_output of all parts, rank]`.
fn factors(
    (a_shape, a): &Matrix,
    (b_shape, b): &Matrix,
    linear: &Linear,
    part: Part,
    fields: &Fields,
    module: &str,
) -> Option<Lora> {
    let ([d_input, d_output], rank) = (linear.dims(), a_shape[0]);
    if a_shape[..] != [rank, d_input] || b_shape[..] != [d_output * part.of(), rank] {
        return None;
    }
    let layout = |part| Layout {
        is_transposed: true,
        part,
    };
    let ours_a = weights::ours(a, &[d_input, rank], layout(Part::Whole));
    let ours_b = weights::ours(b, &[rank, d_output], layout(part));
    let device = linear.weight.lazy_device();
    let param = |values: Vec<f32>, shape: [usize; 2]| {
        Param::from_data(TensorData::new(values, shape), &device)
    };
    Some(Lora::new(
        param(ours_a, [d_input, rank]),
        param(ours_b, [rank, d_output]),
        fields.lora_dropout,
        fields.scale(module),
    ))
}

/// Takes over parameters that an adapter gives whole, such as those of a head, and returns their paths.
fn take_whole(
    model: &mut Transformer,
    architecture: &Architecture,
    tensors: &mut BTreeMap<String, Matrix>,
) -> BTreeSet<String> {
    struct Taker<'a> {
        path: ModulePath,
        architecture: &'a Architecture,
        tensors: &'a mut BTreeMap<String, Matrix>,
        taken: BTreeSet<String>,
    }
    impl ModuleMapper for Taker<'_> {
        fn enter_module(&mut self, name: &str, _: &str) {
            self.path.enter(name);
        }
        fn exit_module(&mut self, _: &str, _: &str) {
            self.path.exit();
        }
        fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
            let path = self.path.name();
            let Some(source) = self.architecture.names.source(&path) else {
                return param;
            };
            let shape = param.lazy_shape();
            let expected = source.layout.shape(&shape.to_vec());
            let fits = |(shape, _): &Matrix| *shape == expected;
            if source.layout.part != Part::Whole
                || !self.tensors.get(&source.name).is_some_and(fits)
            {
                return param;
            }
            let Some((_, values)) = self.tensors.remove(&source.name) else {
                return param;
            };
            let values = weights::ours(&values, &shape.to_vec(), source.layout);
            let mut taken = Param::from_data(TensorData::new(values, shape), &param.lazy_device());
            taken.id = param.id;
            self.taken.insert(path);
            taken
        }
    }
    let mut taker = Taker {
        path: ModulePath::default(),
        architecture,
        tensors,
        taken: BTreeSet::new(),
    };
    *model = model.clone().map(&mut taker);
    taker.taken
}
