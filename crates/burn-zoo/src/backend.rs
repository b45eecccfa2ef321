//! Which backends are compiled in, what devices they find, and which one to use.
//!
//! ```
//! let found = burn_zoo::backend::find("flex").unwrap();
//! assert_eq!(found.name, "flex");
//! let automatic = burn_zoo::backend::automatic().unwrap();
//! println!("{}: {}", automatic.device.name, automatic.reason);
//! ```

use std::panic::{AssertUnwindSafe, catch_unwind};

use burn::tensor::Device;
#[cfg(any(
    feature = "libtorch",
    feature = "wgpu",
    feature = "cuda",
    feature = "rocm"
))]
use burn::tensor::DeviceType;
use serde::Serialize;

/// The environment variable that [`from_environment`] reads.
pub const VARIABLE: &str = "BURN_ZOO_BACKEND";

/// A way of computing, one cargo feature each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Backend {
    /// NVIDIA GPUs through CubeCL.
    Cuda,
    /// PyTorch's C++ library, on processors, CUDA and Metal.
    LibTorch,
    /// AMD GPUs through CubeCL.
    Rocm,
    /// Apple GPUs through wgpu, with Metal's own shader language.
    Metal,
    /// GPUs through wgpu, with SPIR-V shaders.
    Vulkan,
    /// GPUs through wgpu, with WGSL shaders.
    Wgpu,
    /// The processor, with SIMD and threads, in Rust alone.
    Flex,
    /// The processor, through the ndarray crate.
    NdArray,
}

/// What a device is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Hardware {
    /// A graphics processor.
    Gpu,
    /// The computer's processor.
    Cpu,
    /// A graphics processor imitated by the computer's processor, for tests.
    SoftwareGpu,
}

/// A device that a backend found.
#[derive(Clone, Debug)]
pub struct FoundDevice {
    /// What selects it, such as `cuda:0`.
    pub name: String,
    /// Its backend.
    pub backend: Backend,
    /// What it is made of.
    pub hardware: Hardware,
    /// What it calls itself.
    pub description: String,
    /// The device.
    pub device: Device,
}

impl FoundDevice {
    /// Whether it is worth measuring what its matrix products reach. An imitated GPU tries its kernels for many minutes.
    pub fn has_peak(&self) -> bool {
        self.hardware != Hardware::SoftwareGpu
    }
}

/// A device chosen by rank.
#[derive(Clone, Debug)]
pub struct Automatic {
    /// The device.
    pub device: FoundDevice,
    /// Why not one of a higher rank.
    pub reason: String,
}

/// What makes a backend unusable.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BackendError {
    /// There is no such backend.
    #[error(
        "unknown backend `{name}`: use auto, {}, or a device that `burn-zoo backends` lists",
        names(Backend::ALL)
    )]
    Unknown {
        /// What was asked for.
        name: String,
    },
    /// The program was built without it.
    #[error(
        "backend `{0}` is not compiled in: build with `--features {0}`; compiled in: {compiled}",
        backend.name(),
        compiled = names(Backend::ALL.into_iter().filter(|backend| backend.is_compiled_in()))
    )]
    NotCompiledIn {
        /// What was asked for.
        backend: Backend,
    },
    /// It finds no device.
    #[error("backend `{}` finds no device: {}", backend.name(), backend.hint())]
    NoDevice {
        /// What was asked for.
        backend: Backend,
    },
    /// It finds other devices.
    #[error("there is no device `{name}`; backend `{}` finds {}", backend.name(), found.join(", "))]
    NoSuchDevice {
        /// What was asked for.
        name: String,
        /// Its backend.
        backend: Backend,
        /// The devices that there are.
        found: Vec<String>,
    },
    /// No processor backend was compiled in, and no GPU was found.
    #[error("no compiled-in backend finds a device ({reason}): build with `--features flex`")]
    Nothing {
        /// What was looked at.
        reason: String,
    },
}

fn names(backends: impl IntoIterator<Item = Backend>) -> String {
    let names: Vec<&str> = backends.into_iter().map(Backend::name).collect();
    names.join(", ")
}

impl Backend {
    /// All, those that a machine would rather use first.
    pub const ALL: [Self; 8] = [
        Self::Cuda,
        Self::LibTorch,
        Self::Rocm,
        Self::Metal,
        Self::Vulkan,
        Self::Wgpu,
        Self::Flex,
        Self::NdArray,
    ];

    /// Its name, which is also that of its cargo feature.
    pub fn name(self) -> &'static str {
        match self {
            Self::Cuda => "cuda",
            Self::LibTorch => "libtorch",
            Self::Rocm => "rocm",
            Self::Metal => "metal",
            Self::Vulkan => "vulkan",
            Self::Wgpu => "wgpu",
            Self::Flex => "flex",
            Self::NdArray => "ndarray",
        }
    }

    /// Whether the program was built with it.
    pub fn is_compiled_in(self) -> bool {
        match self {
            Self::Cuda => cfg!(feature = "cuda"),
            Self::LibTorch => cfg!(feature = "libtorch"),
            Self::Rocm => cfg!(feature = "rocm"),
            Self::Metal => cfg!(feature = "metal"),
            Self::Vulkan => cfg!(feature = "vulkan"),
            Self::Wgpu => cfg!(feature = "wgpu"),
            Self::Flex => cfg!(feature = "flex"),
            Self::NdArray => cfg!(feature = "ndarray"),
        }
    }

    /// What to do when it finds no device.
    fn hint(self) -> &'static str {
        match self {
            Self::Cuda => "install NVIDIA's driver and the CUDA toolkit",
            Self::LibTorch => "set LIBTORCH, or run scripts/libtorch.sh",
            Self::Rocm => "install ROCm",
            Self::Metal => "Metal needs an Apple GPU",
            Self::Vulkan | Self::Wgpu => {
                "install a GPU driver with Vulkan, or for tests the software device of \
                 mesa-vulkan-drivers"
            }
            Self::Flex | Self::NdArray => "a processor is always there",
        }
    }

    /// The devices it finds, none when it was not compiled in. A driver that fails counts as none.
    pub fn devices(self) -> Vec<FoundDevice> {
        if !self.is_compiled_in() {
            return Vec::new();
        }
        catch_unwind(AssertUnwindSafe(|| self.probe())).unwrap_or_default()
    }

    fn probe(self) -> Vec<FoundDevice> {
        match self {
            #[cfg(feature = "cuda")]
            Self::Cuda => self.graphics(DeviceType::Cuda),
            #[cfg(feature = "rocm")]
            Self::Rocm => self.graphics(DeviceType::Rocm),
            #[cfg(feature = "metal")]
            Self::Metal => self.graphics(DeviceType::Metal),
            #[cfg(feature = "vulkan")]
            Self::Vulkan => self.graphics(DeviceType::Vulkan),
            #[cfg(feature = "wgpu")]
            Self::Wgpu => self.graphics(DeviceType::Wgpu),
            #[cfg(feature = "libtorch")]
            Self::LibTorch => self.libtorch(),
            #[cfg(feature = "flex")]
            Self::Flex => vec![self.processor("flex", Device::flex())],
            #[cfg(feature = "ndarray")]
            #[expect(
                deprecated,
                reason = "Burn drops NdArray after 0.22; the zoo has it on purpose"
            )]
            Self::NdArray => vec![self.processor("ndarray", Device::ndarray())],
            #[allow(unreachable_patterns, reason = "reachable when a feature is off")]
            _ => Vec::new(),
        }
    }

    #[allow(dead_code, reason = "not every build has a processor backend")]
    fn processor(self, name: &str, device: Device) -> FoundDevice {
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        FoundDevice {
            name: name.to_owned(),
            backend: self,
            hardware: Hardware::Cpu,
            description: format!("processor, {threads} threads"),
            device,
        }
    }

    /// The devices of a CubeCL runtime, GPUs before software.
    #[cfg(any(feature = "wgpu", feature = "cuda", feature = "rocm"))]
    fn graphics(self, kind: DeviceType) -> Vec<FoundDevice> {
        let devices = Device::enumerate(kind).into_vec().into_iter().enumerate();
        let mut found: Vec<FoundDevice> = devices
            .filter_map(|(index, device)| {
                let identity = device.identity()?;
                Some(FoundDevice {
                    name: format!("{}:{index}", self.name()),
                    backend: self,
                    hardware: match identity.physical {
                        Some(_) => Hardware::Gpu,
                        None => Hardware::SoftwareGpu,
                    },
                    description: identity.name,
                    device,
                })
            })
            .collect();
        found.sort_by_key(|device| device.hardware == Hardware::SoftwareGpu);
        found
    }

    /// CUDA devices, Apple's, then the processor.
    #[cfg(feature = "libtorch")]
    #[expect(
        deprecated,
        reason = "Burn drops LibTorch after 0.22; the zoo has it on purpose"
    )]
    fn libtorch(self) -> Vec<FoundDevice> {
        let graphics = |name: String, description: &str, device| FoundDevice {
            name,
            backend: self,
            hardware: Hardware::Gpu,
            description: description.to_owned(),
            device,
        };
        let cuda = Device::enumerate(DeviceType::LibTorch)
            .into_vec()
            .into_iter();
        let mut found: Vec<FoundDevice> = cuda
            .enumerate()
            .map(|(index, device)| graphics(format!("libtorch:cuda:{index}"), "CUDA", device))
            .collect();
        if burn_zoo_ops::libtorch::has_metal() {
            found.push(graphics(
                "libtorch:mps".to_owned(),
                "Metal",
                Device::libtorch_mps(),
            ));
        }
        found.push(self.processor("libtorch:cpu", Device::libtorch()));
        found
    }
}

/// The device that a name selects: `auto`, a backend for the best of its devices, or a device as
/// `burn-zoo backends` lists it.
pub fn find(name: &str) -> Result<FoundDevice, BackendError> {
    if name == "auto" {
        return automatic().map(|automatic| automatic.device);
    }
    let family = name.split(':').next().unwrap_or(name);
    let backend = Backend::ALL
        .into_iter()
        .find(|backend| backend.name() == family)
        .ok_or_else(|| BackendError::Unknown {
            name: name.to_owned(),
        })?;
    if !backend.is_compiled_in() {
        return Err(BackendError::NotCompiledIn { backend });
    }
    let found = backend.devices();
    let is_chosen = |device: &&FoundDevice| name == family || device.name == name;
    match (found.iter().find(is_chosen), found.is_empty()) {
        (Some(device), _) => Ok(device.clone()),
        (None, true) => Err(BackendError::NoDevice { backend }),
        (None, false) => Err(BackendError::NoSuchDevice {
            name: name.to_owned(),
            backend,
            found: found.into_iter().map(|device| device.name).collect(),
        }),
    }
}

/// The device that [`VARIABLE`] selects, or the best one where it is not set.
pub fn from_environment() -> Result<FoundDevice, BackendError> {
    find(std::env::var(VARIABLE).as_deref().unwrap_or("auto"))
}

/// The best device here: CUDA, LibTorch on a GPU, ROCm, Metal, Vulkan, wgpu on a GPU, LibTorch on the
/// processor, flex, ndarray. Never a software GPU.
pub fn automatic() -> Result<Automatic, BackendError> {
    let mut passed_over = Vec::new();
    let mut processors = Vec::new();
    for backend in Backend::ALL {
        let found = backend.devices();
        let gpu = found.iter().find(|device| device.hardware == Hardware::Gpu);
        if let Some(device) = gpu {
            return Ok(Automatic {
                device: device.clone(),
                reason: explain("the best GPU found", &passed_over),
            });
        }
        let software = found
            .iter()
            .find(|device| device.hardware == Hardware::SoftwareGpu);
        let is_for_gpus = !matches!(backend, Backend::Flex | Backend::NdArray);
        if is_for_gpus {
            let name = backend.name();
            passed_over.push(match software {
                _ if !backend.is_compiled_in() => format!("{name} not compiled in"),
                Some(device) => format!("{name} has only software, {}", device.description),
                None => format!("{name} finds no GPU"),
            });
        }
        processors.extend(
            found
                .into_iter()
                .filter(|device| device.hardware == Hardware::Cpu),
        );
    }
    match processors.into_iter().next() {
        Some(device) => Ok(Automatic {
            device,
            reason: explain("the best processor backend", &passed_over),
        }),
        None => Err(BackendError::Nothing {
            reason: passed_over.join("; "),
        }),
    }
}

fn explain(choice: &str, passed_over: &[String]) -> String {
    match passed_over {
        [] => choice.to_owned(),
        _ => format!("{choice}: {}", passed_over.join("; ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_select_backends_and_devices() {
        for backend in Backend::ALL {
            for device in backend.devices() {
                assert_eq!(find(&device.name).unwrap().name, device.name);
                let best = find(backend.name()).unwrap();
                assert_eq!(best.name, backend.devices()[0].name);
            }
        }
    }

    #[test]
    fn unknown_names_are_refused_with_the_known_ones() {
        let refusal = find("abacus").unwrap_err().to_string();
        assert!(
            refusal.contains("`abacus`") && refusal.contains("flex, ndarray"),
            "{refusal}"
        );
        let refusal = find("flex:7").unwrap_err();
        assert!(matches!(refusal, BackendError::NoSuchDevice { found, .. } if found == ["flex"]));
    }

    #[test]
    fn what_is_not_compiled_in_is_refused_with_its_feature() {
        for backend in Backend::ALL {
            if !backend.is_compiled_in() {
                let refusal = find(backend.name()).unwrap_err().to_string();
                let advice = format!("--features {}", backend.name());
                assert!(refusal.contains(&advice), "{refusal}");
            }
        }
    }

    #[test]
    fn automatic_never_takes_a_software_gpu() {
        let Automatic { device, reason } = automatic().unwrap();
        assert_ne!(device.hardware, Hardware::SoftwareGpu, "{reason}");
    }
}
