//! Parameters as a safetensors file, named by their path in the module.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::path::{Path, PathBuf};

use burn::module::{Module, ModuleMapper, ModuleVisitor, Param};
use burn::tensor::{DType, Tensor, TensorData};
use memmap2::Mmap;
use safetensors::{Dtype, SafeTensors, tensor::TensorView};

use crate::files;

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
struct ModulePath(Vec<String>);

impl ModulePath {
    fn enter(&mut self, name: &str) {
        self.0.push(name.to_owned());
    }

    fn exit(&mut self) {
        self.0.pop();
    }

    fn name(&self) -> String {
        self.0.join(".")
    }
}

/// Calls `visit` with the path, shape and rank of each float parameter, in the module's order.
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
            (self.1)(self.0.name(), param.val().dims().to_vec());
        }
    }
    module.visit(&mut Visitor(ModulePath::default(), visit));
}

/// Writes all float parameters of `module` as 32-bit floats. The file replaces an older one only
/// when it is complete.
pub fn save<M: Module>(module: &M, path: &Path) -> Result<(), WeightsError> {
    #[derive(Default)]
    struct Collector {
        path: ModulePath,
        tensors: BTreeMap<String, (Vec<usize>, TensorData)>,
    }
    impl ModuleVisitor for Collector {
        fn enter_module(&mut self, name: &str, _: &str) {
            self.path.enter(name);
        }
        fn exit_module(&mut self, _: &str, _: &str) {
            self.path.exit();
        }
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            let tensor = param.val();
            let shape = tensor.dims().to_vec();
            let data = tensor.into_data().convert_dtype(DType::F32);
            self.tensors.insert(self.path.name(), (shape, data));
        }
    }

    let mut collector = Collector::default();
    module.visit(&mut collector);
    let damaged = |error: safetensors::SafeTensorError| WeightsError::Damaged {
        path: path.to_owned(),
        problem: error.to_string(),
    };
    let mut views = Vec::with_capacity(collector.tensors.len());
    for (name, (shape, data)) in &collector.tensors {
        let view = TensorView::new(Dtype::F32, shape.clone(), data.as_bytes()).map_err(damaged)?;
        views.push((name, view));
    }
    let metadata = [("format".to_owned(), "burn-zoo".to_owned())].into();
    let bytes = safetensors::serialize(views, Some(metadata)).map_err(damaged)?;
    files::replace_with(path, bytes).map_err(|source| WeightsError::Io {
        path: path.to_owned(),
        source,
    })
}

/// Reads the parameters of `module` from a file with exactly its parameters. Floats of 16, 32 and
/// 64 bits are converted to the parameter's type.
///
/// # Errors
///
/// When the file cannot be read, is damaged, or differs from the module; every difference is named.
pub fn load<M: Module>(module: M, path: &Path) -> Result<M, WeightsError> {
    let io = |source| WeightsError::Io {
        path: path.to_owned(),
        source,
    };
    let file = File::open(path).map_err(io)?;
    // SAFETY: the mapping is read-only; a file that another process changes meanwhile gives wrong
    // values, as it would when read.
    let bytes = unsafe { Mmap::map(&file) }.map_err(io)?;
    let tensors = SafeTensors::deserialize(&bytes).map_err(|error| WeightsError::Damaged {
        path: path.to_owned(),
        problem: error.to_string(),
    })?;

    let mut loader = Loader {
        path: ModulePath::default(),
        unused: tensors.names().into_iter().collect(),
        tensors: &tensors,
        problems: Vec::new(),
    };
    let module = module.map(&mut loader);
    let mut problems = loader.problems;
    problems.extend(
        loader
            .unused
            .iter()
            .map(|name| format!("`{name}` is unexpected")),
    );
    if problems.is_empty() {
        return Ok(module);
    }
    Err(WeightsError::Mismatch {
        path: path.to_owned(),
        problems,
    })
}

struct Loader<'a> {
    path: ModulePath,
    tensors: &'a SafeTensors<'a>,
    unused: BTreeSet<&'a str>,
    problems: Vec<String>,
}

impl Loader<'_> {
    /// The tensor for the parameter at the current path, or a note of why there is none.
    fn read(&mut self, shape: &[usize]) -> Option<TensorData> {
        let name = self.path.name();
        let Ok(view) = self.tensors.tensor(&name) else {
            self.problems.push(format!("`{name}` is missing"));
            return None;
        };
        self.unused.remove(name.as_str());
        if view.shape() != shape {
            let problem = format!("`{name}` has shape {:?}, expected {shape:?}", view.shape());
            self.problems.push(problem);
            return None;
        }
        let dtype = match view.dtype() {
            Dtype::F64 => DType::F64,
            Dtype::F32 => DType::F32,
            Dtype::F16 => DType::F16,
            Dtype::BF16 => DType::BF16,
            other => {
                let problem = format!("`{name}` has type {other:?}, expected a float");
                self.problems.push(problem);
                return None;
            }
        };
        Some(TensorData::from_bytes_vec(
            view.data().to_vec(),
            shape.to_vec(),
            dtype,
        ))
    }
}

impl ModuleMapper for Loader<'_> {
    fn enter_module(&mut self, name: &str, _: &str) {
        self.path.enter(name);
    }

    fn exit_module(&mut self, _: &str, _: &str) {
        self.path.exit();
    }

    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let tensor = param.val();
        match self.read(&tensor.dims()) {
            Some(data) => {
                let data = data.convert_dtype(tensor.dtype());
                param.map(|old| Tensor::from_data(data, &old.device()))
            }
            None => param,
        }
    }
}
