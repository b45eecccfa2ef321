//! Mixture of experts: a router sends each token to a few of many feed-forward networks
//! (Shazeer et al. 2017, arXiv:1701.06538; GShard: Lepikhin et al. 2020, arXiv:2006.16668; Switch:
//! Fedus et al. 2021, arXiv:2101.03961).

use burn::module::Module;
use burn::tensor::{Bool, DType, Device, Int, Tensor, TensorData, activation};
use burn_zoo_ops::{add_rows, gather_rows};
use serde::{Deserialize, Serialize};

use crate::{
    ConfigError,
    feed_forward::{FeedForward, FeedForwardConfig},
    init,
    linear::{Linear, Linears, named, within},
    require_positive,
};

/// How the chosen experts' outputs are weighted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum ExpertWeights {
    /// By their probability among all experts (Switch).
    Probability,
    /// By their probability among the chosen ones, which sums to 1 (GShard, FastMoE, Mixtral).
    Normalized,
}

/// How many tokens an expert takes.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum ExpertCapacity {
    /// All that choose it.
    Dropless,
    /// At most `⌈factor · tokens · top_k / n_experts⌉`. First choices go before second ones, earlier
    /// tokens before later ones; a choice that finds no room adds nothing.
    ///
    /// What is dropped depends on all tokens that are read at once, later ones among them.
    /// So such a model is not strictly causal, and a cache, which reads token by token, drops less.
    Limited {
        /// 1 is what each expert takes when all take the same.
        factor: f64,
    },
}

/// A mixture that replaces a feed-forward network by experts of its shape.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MixtureConfig {
    /// How many experts there are.
    pub n_experts: usize,
    /// How many of them each token chooses.
    pub top_k: usize,
    /// How their outputs are weighted.
    pub weights: ExpertWeights,
    /// How many tokens an expert takes.
    pub capacity: ExpertCapacity,
    /// The inner width of an expert that every token goes through, if there is one (Dai et al. 2024,
    /// arXiv:2401.06066).
    pub shared_d_ff: Option<usize>,
    /// Whether the router has a bias.
    pub router_bias: bool,
    /// The weight of the load-balancing loss in the training loss.
    pub balance_coefficient: f64,
    /// The weight of the router z-loss in the training loss (Zoph et al. 2022, arXiv:2202.08906).
    pub z_coefficient: f64,
}

impl MixtureConfig {
    /// One expert for each token, as in Switch: capacity 1.25, auxiliary loss 0.01.
    pub fn switch(n_experts: usize) -> Self {
        Self {
            n_experts,
            top_k: 1,
            weights: ExpertWeights::Probability,
            capacity: ExpertCapacity::Limited { factor: 1.25 },
            shared_d_ff: None,
            router_bias: false,
            balance_coefficient: 1e-2,
            z_coefficient: 1e-3,
        }
    }

    /// Two experts for each token and no limit, as in Mixtral.
    pub fn top_two(n_experts: usize) -> Self {
        Self {
            top_k: 2,
            weights: ExpertWeights::Normalized,
            capacity: ExpertCapacity::Dropless,
            z_coefficient: 0.0,
            ..Self::switch(n_experts)
        }
    }

    /// Refuses what cannot be routed.
    pub fn validate(&self) -> Result<(), ConfigError> {
        require_positive("n_experts", self.n_experts)?;
        if self.top_k == 0 || self.top_k > self.n_experts {
            let problem = format!(
                "must be at least 1 and at most n_experts ({}), got {}",
                self.n_experts, self.top_k
            );
            return Err(ConfigError::new("top_k", problem));
        }
        if let ExpertCapacity::Limited { factor } = self.capacity
            && !(factor.is_finite() && factor > 0.0)
        {
            let problem = format!("must be above 0, got {factor}");
            return Err(ConfigError::new("capacity.limited.factor", problem));
        }
        if let Some(d_ff) = self.shared_d_ff {
            require_positive("shared_d_ff", d_ff)?;
        }
        for (field, value) in [
            ("balance_coefficient", self.balance_coefficient),
            ("z_coefficient", self.z_coefficient),
        ] {
            if !(value.is_finite() && value >= 0.0) {
                return Err(ConfigError::new(
                    field,
                    format!("must be at least 0, got {value}"),
                ));
            }
        }
        Ok(())
    }

    fn shared(&self, expert: &FeedForwardConfig) -> Option<FeedForwardConfig> {
        self.shared_d_ff.map(|d_ff| FeedForwardConfig {
            d_ff,
            ..expert.clone()
        })
    }

    /// How many parameters the module has, with experts of the shape of `expert`.
    pub fn n_parameters(&self, expert: &FeedForwardConfig) -> usize {
        let bias = if self.router_bias { self.n_experts } else { 0 };
        let shared = self
            .shared(expert)
            .map_or(0, |config| config.n_parameters());
        expert.d_model * self.n_experts + bias + self.n_experts * expert.n_parameters() + shared
    }

    /// How many of them one token goes through.
    pub fn n_active_parameters(&self, expert: &FeedForwardConfig) -> usize {
        self.n_parameters(expert) - (self.n_experts - self.top_k) * expert.n_parameters()
    }

    /// A mixture of experts of the shape of `expert`.
    pub fn init(&self, expert: &FeedForwardConfig, device: &Device) -> MixtureOfExperts {
        MixtureOfExperts {
            router: init::linear(
                expert.d_model,
                self.n_experts,
                self.router_bias,
                expert.init_std,
                device,
            ),
            experts: (0..self.n_experts).map(|_| expert.init(device)).collect(),
            shared: self.shared(expert).map(|config| config.init(device)),
            config: self.clone(),
        }
    }
}

/// A routed feed-forward layer. Built by [`MixtureConfig::init`].
#[derive(Module, Debug)]
pub struct MixtureOfExperts {
    /// `[d_model, n_experts]`.
    pub router: Linear,
    /// The networks that tokens are sent to.
    pub experts: Vec<FeedForward>,
    /// The network that all tokens go through.
    pub shared: Option<FeedForward>,
    #[module(skip)]
    config: MixtureConfig,
}

/// What a router decided in one forward pass.
#[derive(Clone, Debug)]
pub struct Routing {
    /// How many tokens each expert took.
    pub load: Vec<usize>,
    /// How many choices found no room.
    pub dropped: usize,
    /// Over real tokens, as the next: `n_experts · Σₑ fₑ Pₑ` with `fₑ` the share of tokens whose first choice is `e` and `Pₑ` its
    /// mean probability, `[1]`. 1 when balanced.
    pub balance_loss: Tensor<1>,
    /// The mean squared log-sum-exp of the logits, `[1]`.
    pub z_loss: Tensor<1>,
    coefficients: [f64; 2],
}

impl Routing {
    /// What is added to the training loss, `[1]`.
    pub fn auxiliary_loss(&self) -> Tensor<1> {
        let [balance, z] = self.coefficients;
        self.balance_loss.clone() * balance + self.z_loss.clone() * z
    }
}

/// Which rows go where: for each expert the tokens that it takes, and for each of those the choice
/// (0 for a token's first).
struct Plan {
    rows: Vec<Vec<(usize, usize)>>,
    first_choices: Vec<usize>,
    dropped: usize,
}

impl Plan {
    /// `choices` holds each token's experts, best first. Of tokens, those that are not `real` go nowhere.
    fn new(
        choices: &[Vec<usize>],
        real: impl Fn(usize) -> bool,
        n_experts: usize,
        capacity: usize,
    ) -> Self {
        let mut plan = Self {
            rows: vec![Vec::new(); n_experts],
            first_choices: vec![0; n_experts],
            dropped: 0,
        };
        let top_k = choices.first().map_or(0, Vec::len);
        for rank in 0..top_k {
            let tokens = choices.iter().enumerate();
            for (token, experts) in tokens.filter(|&(token, _)| real(token)) {
                let expert = experts[rank];
                if rank == 0 {
                    plan.first_choices[expert] += 1;
                }
                match plan.rows[expert].len() < capacity {
                    true => plan.rows[expert].push((token, rank)),
                    false => plan.dropped += 1,
                }
            }
        }
        plan
    }
}

/// The `k` largest values' indices, largest first; of equal ones the earlier.
fn largest(values: &[f32], k: usize) -> Vec<usize> {
    let mut indices: Vec<usize> = (0..values.len()).collect();
    indices.sort_by(|&a, &b| values[b].total_cmp(&values[a]).then(a.cmp(&b)));
    indices.truncate(k);
    indices
}

impl MixtureOfExperts {
    /// Its linear layers.
    pub(crate) fn linears(&mut self) -> Linears<'_> {
        let mut linears = named([("router", &mut self.router)]);
        for (index, expert) in self.experts.iter_mut().enumerate() {
            linears.extend(within(&format!("experts.{index}"), expert.linears()));
        }
        if let Some(shared) = &mut self.shared {
            linears.extend(within("shared", shared.linears()));
        }
        linears
    }

    /// `[batch, seq, d_model] → [batch, seq, d_model]`, with what the router decided. `visible` tells which tokens
    /// are real, `[batch, seq]`, all when none: padding takes no room of an expert, and has no part in the losses.
    ///
    /// The choice of experts is read from the device; each expert then runs on the rows it takes.
    pub fn forward(
        &self,
        input: Tensor<3>,
        visible: Option<Tensor<2, Bool>>,
    ) -> (Tensor<3>, Routing) {
        let shape = input.dims();
        let [batch, seq, d_model] = shape;
        let tokens = input.reshape([batch * seq, d_model]);
        let (plan, weights, routing) = self.route(tokens.clone(), visible);
        let start = match &self.shared {
            Some(shared) => shared.forward(tokens.clone()),
            None => tokens.zeros_like(),
        };
        let combined = self.combine(start, tokens, &plan, weights);
        (combined.reshape(shape), routing)
    }

    /// Which expert takes which of the tokens `[n_tokens, d_model]`, and the weights of their choices,
    /// `[n_tokens · top_k, 1]`.
    fn route(
        &self,
        tokens: Tensor<2>,
        visible: Option<Tensor<2, Bool>>,
    ) -> (Plan, Tensor<2>, Routing) {
        let MixtureConfig {
            n_experts, top_k, ..
        } = self.config;
        let ([n_tokens, _], device) = (tokens.dims(), tokens.device());
        let logits = self.router.forward(tokens.clone()).cast(DType::F32);
        let probabilities = activation::softmax(logits.clone(), 1);

        let read = logits.clone().into_data().convert_dtype(DType::F32);
        let read = read.try_to_vec::<f32>().expect("just converted");
        let rows = read.chunks(n_experts);
        let choices: Vec<Vec<usize>> = rows.map(|row| largest(row, top_k)).collect();
        let real = visible.map(|visible| {
            let data = visible.int().into_data().convert_dtype(DType::I64);
            data.try_to_vec::<i64>().expect("just converted")
        });
        let is_real = |token: usize| real.as_ref().is_none_or(|real| real[token] != 0);
        let n_real = (0..n_tokens).filter(|&token| is_real(token)).count();
        let capacity = match self.config.capacity {
            ExpertCapacity::Dropless => usize::MAX,
            ExpertCapacity::Limited { factor } => {
                (factor * (n_real * top_k) as f64 / n_experts as f64).ceil() as usize
            }
        };
        let plan = Plan::new(&choices, is_real, n_experts, capacity);

        let chosen = choices.iter().flatten().map(|&expert| expert as i32);
        let chosen = index(chosen.collect(), &device).reshape([n_tokens, top_k]);
        let weights = match self.config.weights {
            ExpertWeights::Probability => probabilities.clone().gather(1, chosen),
            ExpertWeights::Normalized => activation::softmax(logits.clone().gather(1, chosen), 1),
        };
        let weights = weights.cast(tokens.dtype()).reshape([n_tokens * top_k, 1]);
        let shares = (0..n_tokens).map(|token| match is_real(token) {
            true => 1.0 / n_real as f32,
            false => 0.0,
        });
        let shares = TensorData::new(shares.collect::<Vec<f32>>(), [n_tokens, 1]);
        let shares = Tensor::from_data(shares, &device);
        let routing = self.judge(logits, probabilities, shares, &plan);
        (plan, weights, routing)
    }

    /// The losses that keep a router balanced and its logits small: means over tokens, of which each has its share
    /// `[n_tokens, 1]`.
    fn judge(
        &self,
        logits: Tensor<2>,
        probabilities: Tensor<2>,
        shares: Tensor<2>,
        plan: &Plan,
    ) -> Routing {
        let [_, n_experts] = logits.dims();
        let counts = plan.first_choices.iter();
        let n_real = counts.clone().sum::<usize>().max(1);
        let share: Vec<f32> = counts.map(|&count| count as f32 / n_real as f32).collect();
        let share = TensorData::new(share, [1, n_experts]);
        let share = Tensor::<2>::from_data(share, &logits.device());
        let log_sum_exp = log_sum_exp(logits);
        Routing {
            load: plan.rows.iter().map(Vec::len).collect(),
            dropped: plan.dropped,
            balance_loss: ((probabilities * shares.clone()).sum_dim(0) * share).sum()
                * n_experts as f64,
            z_loss: (log_sum_exp.clone() * log_sum_exp * shares).sum(),
            coefficients: [self.config.balance_coefficient, self.config.z_coefficient],
        }
    }

    /// Adds to `start` `[n_tokens, d_model]` what each expert makes of the rows it takes.
    fn combine(
        &self,
        start: Tensor<2>,
        tokens: Tensor<2>,
        plan: &Plan,
        weights: Tensor<2>,
    ) -> Tensor<2> {
        let (device, top_k) = (tokens.device(), self.config.top_k);
        let taken = self.experts.iter().zip(&plan.rows);
        let taken = taken.filter(|(_, rows)| !rows.is_empty());
        taken.fold(start, |total, (expert, rows)| {
            let places = rows.iter().map(|&(token, _)| token as i32);
            let places = index(places.collect(), &device);
            let slots = rows.iter().map(|&(token, rank)| token * top_k + rank);
            let slots = index(slots.map(|slot| slot as i32).collect(), &device);
            let outputs = expert.forward(gather_rows(tokens.clone(), places.clone()));
            add_rows(total, outputs, gather_rows(weights.clone(), slots), places)
        })
    }
}

/// `[length]`.
fn index(values: Vec<i32>, device: &Device) -> Tensor<1, Int> {
    let length = values.len();
    Tensor::from_data(TensorData::new(values, [length]), device)
}

/// `[rows, n] → [rows, 1]`.
fn log_sum_exp(logits: Tensor<2>) -> Tensor<2> {
    let max = logits.clone().detach().max_dim(1);
    (logits - max.clone()).exp().sum_dim(1).log() + max
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_choices_fill_the_experts_before_second_ones() {
        let choices = vec![vec![0, 1], vec![1, 0], vec![0, 2]];
        let plan = Plan::new(&choices, |_| true, 3, 2);
        // Expert 0 is full with the first choices of tokens 0 and 2, so token 1's second is dropped.
        assert_eq!(plan.rows[0], [(0, 0), (2, 0)]);
        assert_eq!(plan.rows[1], [(1, 0), (0, 1)]);
        assert_eq!(plan.rows[2], [(2, 1)]);
        assert_eq!((plan.dropped, plan.first_choices), (1, vec![2, 1, 0]));
        // Without token 0 there is room.
        let plan = Plan::new(&choices, |token| token > 0, 3, 2);
        assert_eq!(plan.rows[0], [(2, 0), (1, 1)]);
        assert_eq!((plan.dropped, plan.first_choices), (0, vec![1, 1, 0]));
    }

    #[test]
    fn ties_go_to_the_earlier_expert() {
        assert_eq!(largest(&[0.1, 0.5, 0.5, 0.2], 2), [1, 2]);
    }
}
