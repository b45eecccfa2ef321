//! Parameters as safetensors files, under the names and in the layouts of a table.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::path::{Path, PathBuf};

use burn::module::{Module, ModuleMapper, ModuleVisitor, Param};
use burn::tensor::{DType, Device, Tensor, TensorData, bf16, f16};
use memmap2::Mmap;
use safetensors::{Dtype, SafeTensors, tensor::TensorView};
use serde::Deserialize;

use crate::{
    files,
    names::{Layout, Names, Source},
};

/// The name of a checkpoint in one file.
pub const WEIGHTS: &str = "model.safetensors";
/// The name of the list of a checkpoint's shards.
pub const INDEX: &str = "model.safetensors.index.json";

/// What makes a weights file unusable.
#[derive(Debug, thiserror::Error)]
pub enum WeightsError {
    /// The file cannot be read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the operating system says.
        source: std::io::Error,
    },
    /// The file is not a whole safetensors file.
    #[error("{} is damaged or not a safetensors file: {problem}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What the safetensors library says.
        problem: String,
    },
    /// The list of shards is no such list.
    #[error("{}: {problem}", path.display())]
    Index {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// The weights are Python pickles.
    #[error(
        "{} is a Python pickle, which can run code when it is read: load it in Python with \
         `transformers` and save it again with `save_pretrained`, which writes {WEIGHTS}",
        .0.display()
    )]
    Pickle(PathBuf),
    /// There are no weights.
    #[error("{} holds neither {WEIGHTS} nor {INDEX}", .0.display())]
    Missing(PathBuf),
    /// A parameter has no row in the table of names.
    #[error("no name is known for the parameter `{0}`: the family's table of names lacks it")]
    Unnamed(String),
    /// The file and the model differ.
    #[error("{} does not fit the model: {}", path.display(), problems.join("; "))]
    Mismatch {
        /// The file.
        path: PathBuf,
        /// Each tensor that is missing, unexpected, or of another shape or type.
        problems: Vec<String>,
    },
}

/// Keeps track of where in a module a visitor is.
#[derive(Default)]
pub(crate) struct ModulePath(Vec<String>);

impl ModulePath {
    pub(crate) fn enter(&mut self, name: &str) {
        self.0.push(name.to_owned());
    }

    pub(crate) fn exit(&mut self) {
        self.0.pop();
    }

    pub(crate) fn name(&self) -> String {
        self.0.join(".")
    }
}

/// Calls `visit` with the path and shape of each float parameter, in the module's order, without
/// making values that are not there yet.
pub fn for_each_parameter<M: Module>(module: &M, visit: impl FnMut(String, Vec<usize>)) {
    struct Visitor<F>(ModulePath, F);
    impl<F: FnMut(String, Vec<usize>)> ModuleVisitor for Visitor<F> {
        fn enter_module(&mut self, name: &str, _: &str) {
            self.0.enter(name);
        }
        fn exit_module(&mut self, _: &str, _: &str) {
            self.0.exit();
        }
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            (self.1)(self.0.name(), param.lazy_shape().to_vec());
        }
    }
    module.visit(&mut Visitor(ModulePath::default(), visit));
}

/// One of our values seen in a tensor of the checkpoint: both are matrices `[inputs, outputs]`, ours
/// by rows, theirs by strides.
struct Matrix {
    inputs: usize,
    outputs: usize,
    layout: Layout,
}

impl Matrix {
    fn new(shape: &[usize], layout: Layout) -> Self {
        let outputs = shape.last().copied().unwrap_or(1);
        Self {
            inputs: shape.iter().product::<usize>() / outputs.max(1),
            outputs,
            layout,
        }
    }

    /// Calls `visit` with each value's index in our tensor and in theirs, block by block, so that
    /// neither side strides through memory.
    fn for_each(&self, mut visit: impl FnMut(usize, usize)) {
        const BLOCK: usize = 32;
        let all = self.outputs * self.layout.part.of();
        for first_input in (0..self.inputs).step_by(BLOCK) {
            for first_output in (0..self.outputs).step_by(BLOCK) {
                for output in first_output..(first_output + BLOCK).min(self.outputs) {
                    let column = self.layout.part.position(output, self.outputs);
                    for input in first_input..(first_input + BLOCK).min(self.inputs) {
                        let theirs = match self.layout.is_transposed {
                            true => column * self.inputs + input,
                            false => input * all + column,
                        };
                        visit(input * self.outputs + output, theirs);
                    }
                }
            }
        }
    }
}

/// Writes all float parameters of `module` as 32-bit floats, under the names of `names`. The file
/// replaces an older one only when it is complete.
pub fn save<M: Module>(module: &M, names: &Names, path: &Path) -> Result<(), WeightsError> {
    let mut tensors = collect(module, names, Value)?;
    let constants = names.constants();
    tensors.extend(
        constants.map(|(name, values)| (name.to_owned(), (vec![values.len()], values.to_vec()))),
    );
    write(&tensors, path)
}

/// Tensors by name, with their shape.
pub type Tensors = BTreeMap<String, (Vec<usize>, Vec<f32>)>;

/// Float parameters of `module`, or what `of` makes of each (such as its gradient), as a checkpoint has
/// them. Parameters for which `of` gives nothing are left out; a part of a fused tensor is then zero.
pub fn collect<M: Module>(
    module: &M,
    names: &Names,
    of: impl ParameterValue,
) -> Result<Tensors, WeightsError> {
    struct Collector<'a, F> {
        path: ModulePath,
        names: &'a Names,
        of: F,
        tensors: Tensors,
        unnamed: Option<String>,
    }
    impl<F: ParameterValue> ModuleVisitor for Collector<'_, F> {
        fn enter_module(&mut self, name: &str, _: &str) {
            self.path.enter(name);
        }
        fn exit_module(&mut self, _: &str, _: &str) {
            self.path.exit();
        }
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            let path = self.path.name();
            let Some(tensor) = self.of.of(&path, param) else {
                return;
            };
            let Some(Source { name, layout, .. }) = self.names.source(&path) else {
                self.unnamed.get_or_insert(path);
                return;
            };
            let ours = tensor.dims();
            let data = tensor.into_data().convert_dtype(DType::F32);
            let values = data.try_to_vec::<f32>().expect("just converted");
            let shape = layout.shape(&ours);
            let (_, theirs) = self.tensors.entry(name).or_insert_with(|| {
                let zeros = vec![0.0; shape.iter().product()];
                (shape, zeros)
            });
            Matrix::new(&ours, layout).for_each(|from, to| theirs[to] = values[from]);
        }
    }

    let mut collector = Collector {
        path: ModulePath::default(),
        names,
        of,
        tensors: Tensors::new(),
        unnamed: None,
    };
    module.visit(&mut collector);
    match collector.unnamed {
        Some(name) => Err(WeightsError::Unnamed(name)),
        None => Ok(collector.tensors),
    }
}

/// What [`collect`] takes of a parameter.
pub trait ParameterValue {
    /// A tensor of the shape of the parameter at `path`, if there is one.
    fn of<const D: usize>(&self, path: &str, param: &Param<Tensor<D>>) -> Option<Tensor<D>>;
}

/// The parameter itself.
pub struct Value;

impl ParameterValue for Value {
    fn of<const D: usize>(&self, _: &str, param: &Param<Tensor<D>>) -> Option<Tensor<D>> {
        Some(param.val())
    }
}

/// Writes tensors as a safetensors file.
pub fn write(tensors: &Tensors, path: &Path) -> Result<(), WeightsError> {
    let damaged = |error: safetensors::SafeTensorError| WeightsError::Damaged {
        path: path.to_owned(),
        problem: error.to_string(),
    };
    let bytes: Vec<(&String, &Vec<usize>, Vec<u8>)> = tensors
        .iter()
        .map(|(name, (shape, values))| {
            let bytes = values.iter().flat_map(|value| value.to_le_bytes());
            (name, shape, bytes.collect())
        })
        .collect();
    let mut views = Vec::with_capacity(bytes.len());
    for (name, shape, bytes) in &bytes {
        let view = TensorView::new(Dtype::F32, shape.to_vec(), bytes).map_err(damaged)?;
        views.push((name, view));
    }
    // The `transformers` library reads only files that name a framework.
    let metadata = [("format".to_owned(), "pt".to_owned())].into();
    let bytes = safetensors::serialize(views, Some(metadata)).map_err(damaged)?;
    files::replace_with(path, bytes).map_err(|source| WeightsError::Io {
        path: path.to_owned(),
        source,
    })
}

/// Reads all tensors of a safetensors file, floats of 16, 32 or 64 bits.
pub fn read(path: &Path) -> Result<Tensors, WeightsError> {
    let file = MappedFile::open(path.to_owned())?;
    let mut tensors = Tensors::new();
    for (name, view) in file.tensors()?.tensors() {
        let shape = view.shape().to_vec();
        let all = Matrix::new(&[1, shape.iter().product()], Layout::SAME);
        let values = decode(&view, &all).map_err(|found| WeightsError::Mismatch {
            path: path.to_owned(),
            problems: vec![format!("`{name}` has type {found:?}, expected a float")],
        })?;
        tensors.insert(name, (shape, values));
    }
    Ok(tensors)
}

/// Our values, of this shape, from a tensor of the checkpoint.
pub(crate) fn ours(theirs: &[f32], shape: &[usize], layout: Layout) -> Vec<f32> {
    let matrix = Matrix::new(shape, layout);
    let mut values = vec![0.0; matrix.inputs * matrix.outputs];
    matrix.for_each(|to, from| values[to] = theirs[from]);
    values
}

/// Our values from a tensor of the checkpoint, or its type if it does not hold floats.
fn decode(view: &TensorView<'_>, matrix: &Matrix) -> Result<Vec<f32>, Dtype> {
    let data = view.data();
    Ok(match view.dtype() {
        Dtype::F64 => gather(data, matrix, |bytes| f64::from_le_bytes(bytes) as f32),
        Dtype::F32 => gather(data, matrix, f32::from_le_bytes),
        Dtype::F16 => gather(data, matrix, |bytes| f16::from_le_bytes(bytes).to_f32()),
        Dtype::BF16 => gather(data, matrix, |bytes| bf16::from_le_bytes(bytes).to_f32()),
        other => return Err(other),
    })
}

/// The files of a checkpoint.
fn checkpoint_files(directory: &Path) -> Result<Vec<PathBuf>, WeightsError> {
    #[derive(Deserialize)]
    struct Index {
        weight_map: BTreeMap<String, String>,
    }
    let whole = directory.join(WEIGHTS);
    let path = directory.join(INDEX);
    if whole.exists() || !path.exists() {
        let pickle = ["pytorch_model.bin", "pytorch_model.bin.index.json"];
        let pickle = pickle.map(|name| directory.join(name));
        return match pickle.into_iter().find(|path| path.exists()) {
            _ if whole.exists() => Ok(vec![whole]),
            Some(pickle) => Err(WeightsError::Pickle(pickle)),
            None => Err(WeightsError::Missing(directory.to_owned())),
        };
    }
    let broken = |problem: String| WeightsError::Index {
        path: path.clone(),
        problem,
    };
    let text = std::fs::read_to_string(&path).map_err(|source| WeightsError::Io {
        path: path.clone(),
        source,
    })?;
    let index: Index = serde_json::from_str(&text).map_err(|error| broken(error.to_string()))?;
    let files: BTreeSet<&String> = index.weight_map.values().collect();
    // A list may not lead out of its folder.
    if let Some(name) = files
        .iter()
        .find(|name| Path::new(name).file_name() != Some(name.as_ref()))
    {
        return Err(broken(format!(
            "`{name}` is not the name of a file beside it"
        )));
    }
    Ok(files.into_iter().map(|name| directory.join(name)).collect())
}

/// A mapped file and what it holds.
struct MappedFile {
    path: PathBuf,
    bytes: Mmap,
}

impl MappedFile {
    fn open(path: PathBuf) -> Result<Self, WeightsError> {
        let map = |path: &Path| {
            let file = File::open(path)?;
            // SAFETY: the mapping is read-only; a file that another process changes meanwhile gives
            // wrong values, as it would when read.
            unsafe { Mmap::map(&file) }
        };
        match map(&path) {
            Ok(bytes) => Ok(Self { path, bytes }),
            Err(source) => Err(WeightsError::Io { path, source }),
        }
    }

    fn tensors(&self) -> Result<SafeTensors<'_>, WeightsError> {
        SafeTensors::deserialize(&self.bytes).map_err(|error| WeightsError::Damaged {
            path: self.path.clone(),
            problem: error.to_string(),
        })
    }

    /// Gives the pages of a tensor back, so that a model is not in memory twice while it loads.
    fn release(&self, data: &[u8]) {
        #[cfg(unix)]
        {
            let offset = data.as_ptr() as usize - self.bytes.as_ptr() as usize;
            // SAFETY: the mapping is of a file and never written to: pages that are touched again are
            // read again.
            let result = unsafe {
                let advice = memmap2::UncheckedAdvice::DontNeed;
                self.bytes
                    .unchecked_advise_range(advice, offset, data.len())
            };
            if let Err(error) = result {
                tracing::debug!("{}: {error}", self.path.display());
            }
        }
        #[cfg(not(unix))]
        let _ = data;
    }
}

/// Reads the parameters of `module` from the checkpoint in `directory`, one file or several. Floats of
/// 16, 32 and 64 bits are converted to the device's type.
///
/// Values that the module has not made yet ([`shapes_only`](burn_zoo_nn::init::shapes_only)) are never
/// made.
///
/// # Errors
///
/// When a file cannot be read, is damaged, or differs from the module; every difference is named.
pub fn load<M: Module>(module: M, names: &Names, directory: &Path) -> Result<M, WeightsError> {
    read_into(module, names, directory, None).map(|(module, _)| module)
}

/// The same where parameters of which `may_differ` says so, by their path in the module, keep their values when
/// the checkpoint has none of their shape; they are listed. The checkpoint may then hold more than the module.
pub fn load_except<M: Module>(
    module: M,
    names: &Names,
    directory: &Path,
    may_differ: fn(&str) -> bool,
) -> Result<(M, Vec<String>), WeightsError> {
    read_into(module, names, directory, Some(may_differ))
}

/// Reads all parameters of a module, or all but those that may differ, which are listed.
fn read_into<M: Module>(
    module: M,
    names: &Names,
    directory: &Path,
    may_differ: Option<fn(&str) -> bool>,
) -> Result<(M, Vec<String>), WeightsError> {
    let files = checkpoint_files(directory)?;
    let files = files.into_iter().map(MappedFile::open);
    let files = files.collect::<Result<Vec<_>, _>>()?;
    let mut views = BTreeMap::new();
    for (index, file) in files.iter().enumerate() {
        for (name, view) in file.tensors()?.tensors() {
            views.insert(name, (index, view));
        }
    }

    let mut loader = Loader {
        path: ModulePath::default(),
        names,
        files: &files,
        views: &views,
        used: BTreeSet::new(),
        problems: Vec::new(),
        may_differ,
        kept: Vec::new(),
    };
    let module = module.map(&mut loader);
    let Loader {
        used,
        mut problems,
        kept,
        ..
    } = loader;
    let unexpected = views
        .keys()
        .filter(|name| may_differ.is_none() && !used.contains(*name) && !names.is_ignored(name));
    problems.extend(unexpected.map(|name| format!("`{name}` is unexpected")));
    // Parts of one tensor miss it together.
    problems.dedup();
    if problems.is_empty() {
        return Ok((module, kept));
    }
    Err(WeightsError::Mismatch {
        path: match &files[..] {
            [file] => file.path.clone(),
            _ => directory.to_owned(),
        },
        problems,
    })
}

/// The frequencies of rotary positions that a checkpoint has in 16 bits, if it has.
pub fn rounded_frequencies(
    names: &Names,
    directory: &Path,
) -> Result<Option<Vec<f64>>, WeightsError> {
    if !names.has_rotary_frequencies() {
        return Ok(None);
    }
    for path in checkpoint_files(directory)? {
        let file = MappedFile::open(path)?;
        for (name, view) in file.tensors()?.tensors() {
            if !names.is_frequencies(&name) {
                continue;
            }
            let (pairs, _) = view.data().as_chunks::<2>();
            let pairs = pairs.iter();
            return Ok(match view.dtype() {
                Dtype::F16 => Some(pairs.map(|&b| f16::from_le_bytes(b).to_f64()).collect()),
                Dtype::BF16 => Some(pairs.map(|&b| bf16::from_le_bytes(b).to_f64()).collect()),
                _ => None,
            });
        }
    }
    Ok(None)
}

struct Loader<'a> {
    path: ModulePath,
    names: &'a Names,
    files: &'a [MappedFile],
    views: &'a BTreeMap<String, (usize, TensorView<'a>)>,
    used: BTreeSet<String>,
    problems: Vec<String>,
    may_differ: Option<fn(&str) -> bool>,
    kept: Vec<String>,
}

impl Loader<'_> {
    /// Keeps the value of the parameter at a path that may differ, or else notes the problem.
    fn differs(&mut self, path: String, problem: String) {
        match self.may_differ.is_some_and(|may_differ| may_differ(&path)) {
            true => self.kept.push(path),
            false => self.problems.push(problem),
        }
    }

    /// The values for the parameter at the current path, or a note of why there are none.
    fn read(&mut self, shape: &[usize]) -> Option<Vec<f32>> {
        let ours = self.path.name();
        let Some(source) = self.names.source(&ours) else {
            let problem = format!("no name is known for the parameter `{ours}`");
            self.problems.push(problem);
            return None;
        };
        let candidates: Vec<&String> = [&source.name].into_iter().chain(&source.others).collect();
        let found = candidates
            .iter()
            .find(|name| self.views.contains_key(**name));
        let Some(&name) = found else {
            let problem = format!("`{}` is missing", source.name);
            self.differs(ours, problem);
            return None;
        };
        self.used.extend(candidates.into_iter().cloned());
        let (file, view) = &self.views[name];
        let expected = source.layout.shape(shape);
        if view.shape() != expected {
            let problem = format!(
                "`{name}` has shape {:?}, expected {expected:?}",
                view.shape()
            );
            self.differs(ours, problem);
            return None;
        }
        let matrix = Matrix::new(shape, source.layout);
        let values = match decode(view, &matrix) {
            Ok(values) => values,
            Err(found) => {
                let problem = format!("`{name}` has type {found:?}, expected a float");
                self.problems.push(problem);
                return None;
            }
        };
        self.files[*file].release(view.data());
        Some(values)
    }
}

/// Our values from a tensor of the checkpoint.
fn gather<const N: usize>(
    data: &[u8],
    matrix: &Matrix,
    decode: impl Fn([u8; N]) -> f32,
) -> Vec<f32> {
    let (theirs, _) = data.as_chunks::<N>();
    let mut values = vec![0.0; matrix.inputs * matrix.outputs];
    matrix.for_each(|to, from| values[to] = decode(theirs[from]));
    values
}

impl ModuleMapper for Loader<'_> {
    fn enter_module(&mut self, name: &str, _: &str) {
        self.path.enter(name);
    }

    fn exit_module(&mut self, _: &str, _: &str) {
        self.path.exit();
    }

    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let shape = param.lazy_shape();
        match self.read(&shape.to_vec()) {
            Some(values) => {
                let device: Device = param.lazy_device();
                let mut loaded = Param::from_data(TensorData::new(values, shape), &device);
                loaded.id = param.id;
                loaded
            }
            None => param,
        }
    }
}
