//! Optimisers with parameter groups, and clipping by the global norm.

use std::collections::BTreeMap;

use burn::module::{Module, ModuleVisitor, Param, ParamGroup};
use burn::optim::decay::WeightDecayConfig;
use burn::optim::lr_scheduler::module_lr_scheduler::ModuleLrScheduler;
use burn::optim::momentum::MomentumConfig;
use burn::optim::{
    AdafactorConfig, AdjustLrFn, GradientsParams, LionConfig, ModuleOptimizer, MuonConfig,
    SgdConfig,
};
use burn::tensor::Tensor;
use burn_zoo_nn::ConfigError;
use burn_zoo_ops::{scale, square_sum};
use serde::{Deserialize, Serialize};

use crate::{
    adamw::AdamWUpdate,
    parameters::{self, NoSuchParameter, Parameter, matches},
    schedule::Schedule,
};

/// How parameters follow gradients.
///
/// In a recipe, `beta1`, `beta2` and `epsilon` beside the learning rate are those of AdamW:
///
/// ```toml
/// [optimizer]
/// learning_rate = 1e-3
/// beta2 = 0.99
/// ```
///
/// Other algorithms are named, alone or with their settings:
///
/// ```toml
/// [optimizer]
/// learning_rate = 2e-4
/// algorithm = { lion = { beta2 = 0.98 } }
///
/// [[optimizer.groups]]
/// parameters = ["embedding.*"]
/// learning_rate_scale = 0.1
/// ```
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "OptimizerTable")]
pub struct OptimizerConfig {
    /// The peak learning rate.
    pub learning_rate: f64,
    /// The share of each matrix taken off per step and unit of learning rate. Vectors, which are
    /// biases and norms, do not decay. SGD adds the share to the gradient instead.
    pub weight_decay: f32,
    /// The largest norm of all gradients together. Without one they are not clipped.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub clip_norm: Option<f32>,
    /// What turns a gradient into an update.
    pub algorithm: Algorithm,
    /// What differs for some parameters.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub groups: Vec<ParameterGroup>,
}

/// The recipe's table, with the short form of AdamW.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct OptimizerTable {
    learning_rate: f64,
    beta1: Option<f32>,
    beta2: Option<f32>,
    epsilon: Option<f32>,
    #[serde(default = "default_weight_decay")]
    weight_decay: f32,
    clip_norm: Option<f32>,
    #[serde(default, deserialize_with = "algorithm_or_its_name")]
    algorithm: Option<Algorithm>,
    #[serde(default)]
    groups: Vec<ParameterGroup>,
}

impl TryFrom<OptimizerTable> for OptimizerConfig {
    type Error = &'static str;

    fn try_from(table: OptimizerTable) -> Result<Self, Self::Error> {
        let default = AdamW::default();
        let short = AdamW {
            beta1: table.beta1.unwrap_or(default.beta1),
            beta2: table.beta2.unwrap_or(default.beta2),
            epsilon: table.epsilon.unwrap_or(default.epsilon),
        };
        let is_short = [table.beta1, table.beta2, table.epsilon] != [None; 3];
        let algorithm = match (table.algorithm, is_short) {
            (None, _) => Algorithm::AdamW(short),
            (Some(algorithm), false) => algorithm,
            (Some(_), true) => {
                return Err(
                    "beta1, beta2 and epsilon belong inside `algorithm`, where there is one",
                );
            }
        };
        Ok(Self {
            learning_rate: table.learning_rate,
            weight_decay: table.weight_decay,
            clip_norm: table.clip_norm,
            algorithm,
            groups: table.groups,
        })
    }
}

/// `"lion"` means the same as `{ lion = {} }`.
fn algorithm_or_its_name<'de, D>(deserializer: D) -> Result<Option<Algorithm>, D::Error>
where
    D: serde::Deserializer<'de>,
{
    use serde::de::value::{MapAccessDeserializer, MapDeserializer};
    use serde::de::{MapAccess, Visitor};

    struct Either;
    impl<'de> Visitor<'de> for Either {
        type Value = Algorithm;

        fn expecting(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
            f.write_str("the name of an algorithm, or a table with its settings")
        }

        fn visit_str<E: serde::de::Error>(self, name: &str) -> Result<Algorithm, E> {
            let defaults = BTreeMap::<&str, f32>::new();
            let named = MapDeserializer::new(std::iter::once((name, defaults)));
            Algorithm::deserialize(MapAccessDeserializer::new(named))
        }

        fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Algorithm, A::Error> {
            Algorithm::deserialize(MapAccessDeserializer::new(map))
        }
    }

    deserializer.deserialize_any(Either).map(Some)
}

/// What turns a gradient into an update.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Algorithm {
    /// AdamW (Loshchilov & Hutter 2019, arXiv:1711.05101).
    #[serde(alias = "adam_w")]
    AdamW(AdamW),
    /// Lion (Chen et al. 2023, arXiv:2302.06675), which wants a learning rate some 3 to 10 times lower, and
    /// a weight decay as many times higher, than AdamW.
    Lion(Lion),
    /// Muon for the matrices of the blocks (Jordan et al. 2024), scaled so that AdamW's learning rate and
    /// decay fit (Liu et al. 2025, arXiv:2502.16982), and AdamW for the rest.
    Muon(Muon),
    /// Adafactor (Shazeer & Stern 2018, arXiv:1804.04235) without momentum, at the schedule's learning rate.
    Adafactor(Adafactor),
    /// Stochastic gradient descent with momentum (Sutskever et al. 2013), as PyTorch has it.
    Sgd(Sgd),
}

/// Settings of AdamW.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AdamW {
    /// The decay of the mean of gradients.
    pub beta1: f32,
    /// The decay of the mean of squared gradients.
    pub beta2: f32,
    /// Added to the root of the mean square.
    pub epsilon: f32,
}

impl Default for AdamW {
    fn default() -> Self {
        Self {
            beta1: 0.9,
            beta2: 0.95,
            epsilon: 1e-8,
        }
    }
}

/// Settings of Lion.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Lion {
    /// How much of the mean the update's sign is taken from.
    pub beta1: f32,
    /// The decay of the mean of gradients.
    pub beta2: f32,
}

impl Default for Lion {
    fn default() -> Self {
        Self {
            beta1: 0.9,
            beta2: 0.99,
        }
    }
}

/// Settings of Muon.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Muon {
    /// The decay of the sum of gradients.
    pub momentum: f64,
    /// Patterns of the parameters that it moves, of which it takes the matrices.
    pub parameters: Vec<String>,
    /// What moves the rest.
    pub adamw: AdamW,
}

impl Default for Muon {
    fn default() -> Self {
        Self {
            momentum: 0.95,
            parameters: vec!["blocks.*".to_owned()],
            adamw: AdamW::default(),
        }
    }
}

/// Settings of Adafactor.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Adafactor {
    /// The largest root mean square of an update, before the learning rate.
    pub clip_threshold: f32,
    /// The mean of squares decays by `1 - step^-decay_exponent`.
    pub decay_exponent: f64,
    /// Whether the learning rate is a share of a parameter's root mean square.
    pub scale_parameter: bool,
}

impl Default for Adafactor {
    fn default() -> Self {
        Self {
            clip_threshold: 1.0,
            decay_exponent: 0.8,
            scale_parameter: true,
        }
    }
}

/// Settings of SGD.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Sgd {
    /// The decay of the sum of gradients.
    pub momentum: f64,
    /// Whether the step is taken from where momentum leads (Nesterov 1983).
    pub nesterov: bool,
}

impl Default for Sgd {
    fn default() -> Self {
        Self {
            momentum: 0.9,
            nesterov: false,
        }
    }
}

/// Parameters that are trained otherwise than the rest. The last group that means a parameter decides.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ParameterGroup {
    /// Patterns over paths, see [`matches()`].
    pub parameters: Vec<String>,
    /// What the learning rate is multiplied by.
    #[serde(default = "one")]
    pub learning_rate_scale: f64,
    /// Their weight decay, vectors included, instead of the optimiser's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weight_decay: Option<f32>,
}

fn one() -> f64 {
    1.0
}

fn default_weight_decay() -> f32 {
    0.1
}

/// Which of an algorithm's rules moves a parameter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Rule {
    /// That of its name.
    Main,
    /// AdamW, beside Muon.
    Rest,
}

/// How one parameter is trained.
struct Treatment {
    path: String,
    rule: Rule,
    weight_decay: f32,
    learning_rate_scale: f64,
}

impl OptimizerConfig {
    /// AdamW with the usual settings of language models and no clipping.
    pub fn new(learning_rate: f64) -> Self {
        Self {
            learning_rate,
            weight_decay: default_weight_decay(),
            clip_norm: None,
            algorithm: Algorithm::AdamW(AdamW::default()),
            groups: Vec::new(),
        }
    }

    /// Refuses impossible values.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let rate = self.learning_rate;
        check(
            "learning_rate",
            rate,
            rate > 0.0 && rate <= 1.0,
            "above 0 and at most 1",
        )?;
        not_negative("weight_decay", self.weight_decay.into())?;
        if let Some(norm) = self.clip_norm {
            check("clip_norm", norm, norm > 0.0, "above 0, or left out")?;
        }
        for (index, group) in self.groups.iter().enumerate() {
            let named = |error: ConfigError| error.within(&format!("groups[{index}]"));
            not_negative("learning_rate_scale", group.learning_rate_scale).map_err(named)?;
            let decay = group.weight_decay.unwrap_or(0.0);
            not_negative("weight_decay", decay.into()).map_err(named)?;
        }
        let within = |name: &'static str| move |error: ConfigError| error.within(name);
        match &self.algorithm {
            // The short form of the recipe.
            Algorithm::AdamW(settings) => settings.validate(),
            Algorithm::Lion(settings) => below_one("beta1", settings.beta1.into())
                .and_then(|()| below_one("beta2", settings.beta2.into()))
                .map_err(within("algorithm.lion")),
            Algorithm::Muon(settings) => below_one("momentum", settings.momentum)
                .and_then(|()| settings.adamw.validate().map_err(within("adamw")))
                .map_err(within("algorithm.muon")),
            Algorithm::Adafactor(settings) => {
                above_zero("clip_threshold", settings.clip_threshold.into())
                    .and_then(|()| above_zero("decay_exponent", settings.decay_exponent))
                    .map_err(within("algorithm.adafactor"))
            }
            Algorithm::Sgd(settings) => {
                below_one("momentum", settings.momentum).map_err(within("algorithm.sgd"))
            }
        }
    }

    /// An optimiser for `module`.
    ///
    /// # Errors
    ///
    /// When a pattern means none of its parameters.
    pub fn init<M: Module>(&self, module: &M) -> Result<ModuleOptimizer, NoSuchParameter> {
        let mut groups = BTreeMap::<(Rule, u32), Vec<String>>::new();
        for treatment in self.treatments(module)? {
            let key = (treatment.rule, treatment.weight_decay.to_bits());
            groups.entry(key).or_default().push(treatment.path);
        }
        // Every parameter is in a group; this one only completes the optimiser. Groups are by path, because
        // ids change when a checkpoint is loaded.
        let nothing = SgdConfig::new().init();
        let add = |optimizer, ((rule, decay), paths)| {
            let group = ParamGroup::from_paths(paths);
            self.add(optimizer, group, rule, f32::from_bits(decay))
        };
        Ok(groups.into_iter().fold(nothing, add))
    }

    /// A learning rate for each parameter of `module`, by a schedule.
    ///
    /// # Errors
    ///
    /// When a pattern means none of its parameters.
    pub fn learning_rates<M: Module>(
        &self,
        schedule: Schedule,
        module: &M,
    ) -> Result<ModuleLrScheduler, NoSuchParameter> {
        let mut groups = BTreeMap::<u64, Vec<String>>::new();
        for treatment in self.treatments(module)? {
            let scale = treatment.learning_rate_scale;
            if scale != 1.0 {
                groups
                    .entry(scale.to_bits())
                    .or_default()
                    .push(treatment.path);
            }
        }
        let all = ModuleLrScheduler::new(schedule.clone());
        let add = |all: ModuleLrScheduler, (scale, paths)| {
            let scaled = schedule.scaled(f64::from_bits(scale));
            all.with_group(ParamGroup::from_paths(paths), scaled)
        };
        Ok(groups.into_iter().fold(all, add))
    }

    fn treatments<M: Module>(&self, module: &M) -> Result<Vec<Treatment>, NoSuchParameter> {
        let parameters = parameters::list(module);
        if let Algorithm::Muon(muon) = &self.algorithm {
            parameters::check_patterns(&muon.parameters, &parameters)?;
        }
        for group in &self.groups {
            parameters::check_patterns(&group.parameters, &parameters)?;
        }
        let means =
            |patterns: &[String], path: &str| patterns.iter().any(|pattern| matches(pattern, path));
        let treatment = |Parameter { path, shape }: Parameter| {
            let mut groups = self.groups.iter().rev();
            let group = groups.find(|group| means(&group.parameters, &path));
            let rule = match &self.algorithm {
                Algorithm::Muon(muon) if shape.len() != 2 || !means(&muon.parameters, &path) => {
                    Rule::Rest
                }
                _ => Rule::Main,
            };
            let default = if shape.len() < 2 {
                0.0
            } else {
                self.weight_decay
            };
            Treatment {
                rule,
                weight_decay: group
                    .and_then(|group| group.weight_decay)
                    .unwrap_or(default),
                learning_rate_scale: group.map_or(1.0, |group| group.learning_rate_scale),
                path,
            }
        };
        Ok(parameters.into_iter().map(treatment).collect())
    }

    fn add(
        &self,
        optimizer: ModuleOptimizer,
        group: ParamGroup,
        rule: Rule,
        weight_decay: f32,
    ) -> ModuleOptimizer {
        let decay = (weight_decay > 0.0).then(|| WeightDecayConfig::new(weight_decay));
        match &self.algorithm {
            Algorithm::Muon(Muon { adamw, .. }) if rule == Rule::Rest => {
                optimizer.with_group(group, adamw.build(weight_decay), None)
            }
            Algorithm::AdamW(adamw) => optimizer.with_group(group, adamw.build(weight_decay), None),
            Algorithm::Lion(lion) => {
                let lion = LionConfig::new()
                    .with_beta_1(lion.beta1)
                    .with_beta_2(lion.beta2)
                    .with_weight_decay(weight_decay);
                optimizer.with_group(group, lion.build(), None)
            }
            Algorithm::Muon(muon) => {
                let muon = MuonConfig::new()
                    .with_momentum(momentum(muon.momentum, true))
                    .with_weight_decay(decay)
                    // Not the default, which would take our matrices, `[in, out]`, for transposed ones.
                    .with_adjust_lr_fn(AdjustLrFn::MatchRmsAdamW);
                optimizer.with_group(group, muon.build(), None)
            }
            Algorithm::Adafactor(adafactor) => {
                let adafactor = AdafactorConfig::new()
                    .with_clip_threshold(adafactor.clip_threshold)
                    .with_decay_rate(-adafactor.decay_exponent)
                    .with_scale_parameter(adafactor.scale_parameter)
                    .with_relative_step(false)
                    .with_weight_decay(weight_decay);
                optimizer.with_group(group, adafactor.build(), None)
            }
            Algorithm::Sgd(sgd) => {
                let sgd = SgdConfig::new()
                    .with_momentum(Some(momentum(sgd.momentum, sgd.nesterov)))
                    .with_weight_decay(decay);
                optimizer.with_group(group, sgd.build(), None)
            }
        }
    }
}

impl AdamW {
    fn validate(&self) -> Result<(), ConfigError> {
        below_one("beta1", self.beta1.into())?;
        below_one("beta2", self.beta2.into())?;
        above_zero("epsilon", self.epsilon.into())
    }

    fn build(&self, weight_decay: f32) -> AdamWUpdate {
        AdamWUpdate {
            settings: self.clone(),
            weight_decay,
        }
    }
}

/// Momentum that adds the whole gradient.
fn momentum(momentum: f64, nesterov: bool) -> MomentumConfig {
    MomentumConfig {
        momentum,
        dampening: 0.0,
        nesterov,
    }
}

fn check(
    field: &str,
    found: impl std::fmt::Display,
    holds: bool,
    expected: &str,
) -> Result<(), ConfigError> {
    match holds {
        true => Ok(()),
        false => Err(ConfigError::new(
            field,
            format!("must be {expected}, got {found}"),
        )),
    }
}

fn below_one(field: &str, value: f64) -> Result<(), ConfigError> {
    check(
        field,
        value as f32,
        (0.0..1.0).contains(&value),
        "at least 0 and below 1",
    )
}

fn above_zero(field: &str, value: f64) -> Result<(), ConfigError> {
    check(
        field,
        value as f32,
        value > 0.0 && value.is_finite(),
        "a number above 0",
    )
}

fn not_negative(field: &str, value: f64) -> Result<(), ConfigError> {
    check(
        field,
        value as f32,
        value >= 0.0 && value.is_finite(),
        "a number, 0 or more",
    )
}

/// Scales all gradients so that their norm, taken together, is at most `max_norm` (Pascanu et al.
/// 2013, arXiv:1211.5063). Nothing is read back from the device.
pub fn clip_by_global_norm<M: Module>(
    module: &M,
    grads: GradientsParams,
    max_norm: f32,
) -> GradientsParams {
    let Some(norm) = global_norm(module, &grads) else {
        return grads;
    };
    let factor = (norm + 1e-6).recip().mul_scalar(max_norm).clamp_max(1.0);
    scale_gradients(module, grads, factor)
}

/// The norm of all gradients together, `[1]`; none when there are none.
pub(crate) fn global_norm<M: Module>(module: &M, grads: &GradientsParams) -> Option<Tensor<1>> {
    struct SquaredNorm<'a> {
        grads: &'a GradientsParams,
        sum: Option<Tensor<1>>,
    }
    impl ModuleVisitor for SquaredNorm<'_> {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            if let Some(grad) = self.grads.get::<D>(param.id) {
                let square = square_sum(grad);
                self.sum = Some(match self.sum.take() {
                    Some(sum) => sum + square,
                    None => square,
                });
            }
        }
    }
    let mut norm = SquaredNorm { grads, sum: None };
    module.visit(&mut norm);
    norm.sum.map(Tensor::sqrt)
}

/// Multiplies all gradients by a factor `[1]`.
pub(crate) fn scale_gradients<M: Module>(
    module: &M,
    grads: GradientsParams,
    factor: Tensor<1>,
) -> GradientsParams {
    struct Scale {
        grads: GradientsParams,
        factor: Tensor<1>,
    }
    impl ModuleVisitor for Scale {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            if let Some(grad) = self.grads.remove::<D>(param.id) {
                self.grads
                    .register(param.id, scale(grad, self.factor.clone()));
            }
        }
    }
    let mut scale = Scale { grads, factor };
    module.visit(&mut scale);
    scale.grads
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::module::ModuleMapper;
    use burn::tensor::Device;

    /// A matrix and a vector, named as in a block.
    #[derive(Module, Debug)]
    struct Pair {
        matrix: Param<Tensor<2>>,
        vector: Param<Tensor<1>>,
    }

    #[derive(Module, Debug)]
    struct Blocks {
        blocks: Vec<Pair>,
    }

    fn model() -> Blocks {
        let device = Device::flex().autodiff();
        let matrix = [[0.5, -1.0, 0.25], [2.0, 0.75, -0.125]];
        Blocks {
            blocks: vec![Pair {
                matrix: Param::from_data(matrix, &device),
                vector: Param::from_data([0.5, -0.25, 1.0], &device),
            }],
        }
    }

    /// The parameters after three steps on given gradients at a learning rate of 0.1.
    fn three_steps(config: &OptimizerConfig) -> Vec<f64> {
        let matrices = [
            [[0.1, -0.2, 0.3], [0.4, -0.5, 0.6]],
            [[-0.3, 0.2, 0.1], [0.2, 0.4, -0.1]],
            [[0.05, 0.1, -0.4], [-0.6, 0.3, 0.2]],
        ];
        let vectors = [[0.3, -0.1, 0.2], [-0.2, 0.4, 0.1], [0.1, 0.1, -0.5]];
        let mut model = model();
        let mut optimizer = config.init(&model).unwrap();
        for (matrix, vector) in matrices.into_iter().zip(vectors) {
            let mut grads = GradientsParams::new();
            let device = Device::flex();
            let [pair] = &model.blocks[..] else { panic!() };
            grads.register(pair.matrix.id, Tensor::<2>::from_data(matrix, &device));
            grads.register(pair.vector.id, Tensor::<1>::from_data(vector, &device));
            model = optimizer.step(0.1, model, grads);
        }
        values(model)
    }

    fn values(model: Blocks) -> Vec<f64> {
        struct Values(Vec<f64>);
        impl ModuleMapper for Values {
            fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
                self.0.extend(param.val().into_data().iter::<f64>());
                param
            }
        }
        let mut values = Values(Vec::new());
        model.map(&mut values);
        values.0
    }

    fn config(algorithm: Algorithm, weight_decay: f32) -> OptimizerConfig {
        OptimizerConfig {
            algorithm,
            weight_decay,
            ..OptimizerConfig::new(0.1)
        }
    }

    fn assert_close(found: &[f64], expected: &[f64], tolerance: f64) {
        assert_eq!(found.len(), expected.len());
        for (found_value, expected_value) in found.iter().zip(expected) {
            let difference = (found_value - expected_value).abs();
            assert!(difference < tolerance, "{found:?}, expected {expected:?}");
        }
    }

    /// `torch.optim.AdamW([{matrix, weight_decay=0.5}, {vector, weight_decay=0}], lr=0.1,
    /// betas=(0.9, 0.95), eps=1e-8)` of PyTorch 2.9, three steps.
    #[test]
    fn adamw_is_pytorchs() {
        let expected = [
            0.4127316, -0.7974837, 0.0488365, 1.5433909, 0.7155784, -0.3099073, 0.3572185,
            -0.2624555, 0.8344985,
        ];
        let config = config(Algorithm::AdamW(AdamW::default()), 0.5);
        assert_close(&three_steps(&config), &expected, 2e-6);
    }

    /// `torch.optim.SGD([{matrix, weight_decay=0.5}, {vector, weight_decay=0}], lr=0.1, momentum=0.9,
    /// nesterov=…)` of PyTorch 2.9, three steps.
    #[test]
    fn sgd_is_pytorchs() {
        let plain = [
            0.3909625, -0.727925, 0.1286688, 1.38485, 0.5706562, -0.2442719, 0.4467, -0.3089,
            0.9768,
        ];
        let nesterov = [
            0.3527038, -0.6422277, 0.1203332, 1.2086853, 0.4624794, -0.2681127, 0.43203, -0.34301,
            0.99912,
        ];
        for (is_nesterov, expected) in [(false, plain), (true, nesterov)] {
            let sgd = Sgd {
                nesterov: is_nesterov,
                ..Sgd::default()
            };
            let config = config(Algorithm::Sgd(sgd), 0.5);
            assert_close(&three_steps(&config), &expected, 2e-6);
        }
    }

    /// `transformers.optimization.Adafactor([matrix, vector], lr=0.1, eps=(1e-30, 1e-3), clip_threshold=1.0,
    /// decay_rate=-0.8, beta1=None, scale_parameter=True, relative_step=False)` of transformers 5.24, three
    /// steps.
    #[test]
    fn adafactor_is_that_of_transformers() {
        let expected = [
            0.5720257, -1.0288826, 0.2569053, 1.9685159, 0.6868463, -0.2440331, 0.4523599,
            -0.2864065, 0.9823176,
        ];
        let config = config(Algorithm::Adafactor(Adafactor::default()), 0.0);
        assert_close(&three_steps(&config), &expected, 2e-6);
    }

    /// The paper's algorithm 2, worked out in Python: `c = 0.9 m + 0.1 g`, `w -= 0.1 (sign(c) + decay w)`,
    /// `m = 0.99 m + 0.01 g`.
    #[test]
    fn lion_is_the_papers() {
        let expected = [
            0.3334375, -0.962125, 0.1290937, 1.6294999, 0.5382813, -0.2024219, 0.4, -0.35, 0.9,
        ];
        let config = config(Algorithm::Lion(Lion::default()), 0.5);
        assert_close(&three_steps(&config), &expected, 2e-6);
    }

    /// On a diagonal gradient, the Newton-Schulz iteration of a matrix is that of each of its numbers:
    /// `x ← 3.4445 x − 4.775 x³ + 2.0315 x⁵`, five times from `g / ‖g‖`.
    #[test]
    fn muon_moves_matrices_by_an_orthogonal_step_and_vectors_as_adamw() {
        let device = Device::flex().autodiff();
        let diagonal: [f64; 3] = [3.0, 0.5, 1.5];
        let matrix = Tensor::<2>::zeros([3, 3], &device);
        let model = Blocks {
            blocks: vec![Pair {
                matrix: Param::from_tensor(matrix),
                vector: Param::from_data([0.0; 3], &device),
            }],
        };
        let [a, b, c] = diagonal;
        let gradient = [[a, 0.0, 0.0], [0.0, b, 0.0], [0.0, 0.0, c]];
        let mut grads = GradientsParams::new();
        let plain = Device::flex();
        let pair = &model.blocks[0];
        grads.register(pair.matrix.id, Tensor::<2>::from_data(gradient, &plain));
        grads.register(
            pair.vector.id,
            Tensor::<1>::from_data([2.0, -1.0, 0.5], &plain),
        );
        let config = config(Algorithm::Muon(Muon::default()), 0.0);
        let moved = config.init(&model).unwrap().step(0.1, model, grads);

        let norm = (a * a + b * b + c * c).sqrt();
        let rate = 0.1 * 0.2 * 3f64.sqrt();
        let step = |value: f64| {
            let mut x = value / norm;
            for _ in 0..5 {
                x = 3.4445 * x - 4.775 * x.powi(3) + 2.0315 * x.powi(5);
            }
            -rate * x
        };
        let [a, b, c] = diagonal.map(step);
        let matrix = [a, 0.0, 0.0, 0.0, b, 0.0, 0.0, 0.0, c];
        // AdamW's first step is the learning rate, whatever the gradient's size.
        let expected = [&matrix[..], &[-0.1, 0.1, -0.1]].concat();
        assert_close(&values(moved), &expected, 1e-5);
    }

    /// The last group that means a parameter decides its decay and its learning rate.
    #[test]
    fn groups_change_decay_and_learning_rate() {
        let mut config = config(Algorithm::Sgd(Sgd::default()), 0.5);
        let group = |pattern: &str, learning_rate_scale, weight_decay| ParameterGroup {
            parameters: vec![pattern.to_owned()],
            learning_rate_scale,
            weight_decay,
        };
        config.groups = vec![
            group("*", 0.5, Some(0.25)),
            group("blocks.*.vector", 2.0, Some(1.0)),
        ];
        let model = model();
        let schedule = crate::schedule::ScheduleConfig::Constant {
            warmup_iterations: 0,
        };
        let schedule = schedule.init(0.1, 10);
        let rates = config.learning_rates(schedule, &model).unwrap().step();
        let mut grads = GradientsParams::new();
        let pair = &model.blocks[0];
        grads.register(pair.matrix.id, pair.matrix.val().inner().zeros_like());
        grads.register(pair.vector.id, pair.vector.val().inner().zeros_like());
        let before = values(model.clone());
        let after = values(config.init(&model).unwrap().step(rates, model, grads));
        // With no gradient, SGD takes `rate · decay` of each.
        let matrix = before[..6].iter().map(|x| x * (1.0 - 0.05 * 0.25));
        let vector = before[6..].iter().map(|x| x * (1.0 - 0.2 * 1.0));
        assert_close(&after, &matrix.chain(vector).collect::<Vec<_>>(), 1e-6);
    }

    #[test]
    fn a_pattern_that_means_nothing_is_named() {
        let mut config = OptimizerConfig::new(0.1);
        config.groups = vec![ParameterGroup {
            parameters: vec!["vector".to_owned(), "embeding.*".to_owned()],
            learning_rate_scale: 1.0,
            weight_decay: None,
        }];
        let error = config.init(&model()).err().unwrap().to_string();
        assert_eq!(
            error,
            "the pattern `embeding.*` matches no parameter; there are blocks.*.matrix, blocks.*.vector"
        );
    }

    #[test]
    fn recipes_name_an_algorithm_or_write_adamw_short() {
        let parse = |text: &str| toml::from_str::<OptimizerConfig>(text);
        let short = parse("learning_rate = 0.1\nbeta2 = 0.99\nclip_norm = 1.0").unwrap();
        let adamw = AdamW {
            beta2: 0.99,
            ..AdamW::default()
        };
        assert_eq!(short.algorithm, Algorithm::AdamW(adamw));
        let named = parse("learning_rate = 0.1\nalgorithm = \"lion\"").unwrap();
        assert_eq!(named.algorithm, Algorithm::Lion(Lion::default()));
        let table =
            parse("learning_rate = 0.1\nalgorithm = { muon = { momentum = 0.9 } }").unwrap();
        let Algorithm::Muon(muon) = &table.algorithm else {
            panic!("{:?}", table.algorithm)
        };
        assert_eq!(muon.momentum, 0.9);
        for config in [short, named, table] {
            let written = toml::to_string(&config).unwrap();
            assert_eq!(parse(&written).unwrap(), config, "{written}");
        }
        for (text, expected) in [
            ("algorithm = \"lyon\"", "unknown variant `lyon`"),
            (
                "algorithm = { lion = { beta3 = 0.1 } }",
                "unknown field `beta3`",
            ),
            (
                "algorithm = \"lion\"\nbeta1 = 0.9",
                "belong inside `algorithm`",
            ),
        ] {
            let error = parse(&format!("learning_rate = 0.1\n{text}")).unwrap_err();
            assert!(error.to_string().contains(expected), "{error}");
        }
    }
}
