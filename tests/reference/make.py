#!/usr/bin/env python3
"""Makes the reference cases of this folder: tiny checkpoints with what PyTorch computes from them.

    make.py              every case
    make.py gpt2 bert    only these

Each case is a folder with `config.json`, `model.safetensors`, `input.json`, `outputs.safetensors` and
`gradients.safetensors`; README.md says what is in them. A case is seeded by its name, so that adding
one leaves the files of the others as they are.
"""

from __future__ import annotations

import json
import math
import shutil
import sys
import tempfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers as hf
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

HERE = Path(__file__).resolve().parent
Tensors = dict[str, Tensor]
Inputs = dict[str, Tensor]

# One expert after the other: the default wants widths that are multiples of four.
EXPERTS = {"experts_implementation": "eager"}


def seed(case: str) -> None:
    torch.manual_seed(zlib.crc32(case.encode()))


# --- What every case writes --------------------------------------------------------------------


def write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n")


def edit_json(path: Path, edit: Callable[[dict[str, Any]], None]) -> None:
    value = json.loads(path.read_text())
    edit(value)
    write_json(path, value)


def save(path: Path, tensors: Tensors) -> None:
    # Cloned because safetensors refuses tensors that share memory.
    plain = {name: t.detach().to(torch.float32).contiguous().clone() for name, t in tensors.items()}
    save_file(plain, path, metadata={"format": "pt"})


def output_weight(output: Tensor, mask: Tensor | None) -> Tensor:
    """The weight of each number in the loss: irregular, so that a wrong order shows, and zero at
    padding, whose outputs mean nothing and differ between attention implementations."""
    weight = torch.sin(0.7 * torch.arange(output.numel(), dtype=torch.float32) + 1).reshape(output.shape)
    if mask is not None:
        weight = weight * mask.reshape(*mask.shape, *[1] * (output.dim() - 2))
    return weight


def weighted_loss(outputs: Tensors, weights: Tensors) -> Tensor:
    return sum((outputs[name] * weights[name]).sum() for name in outputs)


def save_outputs(folder: Path, inputs: Inputs, outputs: Tensors, weights: Tensors) -> None:
    (folder / "input.json").write_text(json.dumps({name: value.tolist() for name, value in inputs.items()}) + "\n")
    for name, value in outputs.items():
        assert value.isfinite().all(), f"{folder.name}: {name} is not finite"
        assert 0.02 < value.abs().max() < 60, f"{folder.name}: {name} is out of scale"
    named = {f"weight.{name}": weight for name, weight in weights.items()}
    save(folder / "outputs.safetensors", outputs | named)


# --- Cases of Hugging Face classes ---------------------------------------------------------------


@dataclass
class Case:
    name: str
    model: type[hf.PreTrainedModel]
    config: hf.PreTrainedConfig
    # Tokens of each sequence: unequal lengths are padded.
    lengths: tuple[int, ...] = (11, 8)
    left: bool = False
    # How many token types the input has.
    segments: int = 0
    decoder_length: int = 0
    # Changes the model before it is saved, and the folder after.
    prepare: Callable[[hf.PreTrainedModel], None] = lambda model: None
    finish: Callable[[Path], None] = lambda folder: None
    save_arguments: dict[str, Any] = field(default_factory=dict)


def check_choice(logits: Tensor, choices: int) -> None:
    """No choice of an expert, and no order of the chosen, may hang on rounding."""
    ranked = logits.sort(dim=1, descending=True).values[:, : choices + 1]
    assert (ranked[:, :-1] - ranked[:, 1:]).min() > 1e-3, "a choice is too close: change the seed"


def redraw(model: nn.Module) -> None:
    """Draws every parameter anew: a bias of zero or a norm of one would hide that it is forgotten."""
    for module in model.modules():
        norm = "Norm" in type(module).__name__
        for name, parameter in module.named_parameters(recurse=False):
            mean, deviation = 0.0, 0.25
            if name == "bias":
                deviation = 0.1
            elif norm:
                mean, deviation = 1.0, 0.1
            elif isinstance(module, nn.Embedding):
                deviation = 0.5
            nn.init.normal_(parameter, mean, deviation)


def draw_inputs(case: Case) -> Inputs:
    config = case.config
    batch, length = len(case.lengths), max(case.lengths)
    pad = config.pad_token_id if config.pad_token_id is not None else 0
    mask_token = getattr(config, "mask_token_id", None)
    # No padding token among the real ones: torch gives the padding row of an embedding no gradient.
    allowed = torch.tensor([t for t in range(config.vocab_size) if t not in (pad, mask_token)])

    def draw(rows: int, columns: int) -> Tensor:
        return allowed[torch.randint(len(allowed), (rows, columns))]

    inputs = {"input_ids": draw(batch, length)}
    if min(case.lengths) < length:
        position = torch.arange(length).flip(0) if case.left else torch.arange(length)
        mask = (position < torch.tensor(case.lengths)[:, None]).long()
        inputs["attention_mask"] = mask
        inputs["input_ids"] = torch.where(mask == 1, inputs["input_ids"], pad)
    if mask_token is not None:
        # A different number in every sequence, for ESM scales by their share.
        for row in range(batch):
            inputs["input_ids"][row, 1 : 2 + row] = mask_token
    if case.segments:
        inputs["token_type_ids"] = torch.randint(case.segments, (batch, length)).sort(dim=1).values
        assert inputs["token_type_ids"].unique().numel() == case.segments
    if case.decoder_length:
        inputs["decoder_input_ids"] = draw(batch, case.decoder_length)
    return inputs


def load(model: type[hf.PreTrainedModel], folder: Path) -> hf.PreTrainedModel:
    loaded, report = model.from_pretrained(
        folder, attn_implementation="eager", dtype=torch.float32, output_loading_info=True, **EXPERTS
    )
    assert not report["missing_keys"] and not report["mismatched_keys"], (folder.name, report)
    for module in loaded.modules():
        if type(module).__name__.endswith("TopKRouter"):
            module.register_forward_hook(lambda router, _, output: check_choice(output[0], router.top_k))
    return loaded.eval()


def run(model: hf.PreTrainedModel, inputs: Inputs) -> Tensors:
    outputs = model(**inputs, return_dict=True)
    return {n: t for n, t in outputs.items() if isinstance(t, Tensor) and t.is_floating_point()}


def padding_mask(name: str, output: Tensor, inputs: Inputs) -> Tensor | None:
    """The attention mask if the output has one entry per token of the padded sequence."""
    mask = inputs.get("attention_mask")
    if "decoder_input_ids" in inputs and not name.startswith("encoder_"):
        return None
    return mask if mask is not None and output.shape[:2] == mask.shape else None


def gradients_as_saved(model: hf.PreTrainedModel, folder: Path) -> Tensors:
    """The gradients under the names of the file: `save_pretrained` itself undoes what loading
    renamed and fused, and writes tied parameters once."""
    known = dict(model.named_parameters(remove_duplicate=False))
    gradients = {name: p.grad for name, p in known.items() if p.grad is not None}
    with tempfile.TemporaryDirectory() as scratch:
        model.save_pretrained(scratch, state_dict=gradients)
        gradients = load_file(Path(scratch) / "model.safetensors")
    stored: Tensors = {}
    for file in folder.glob("model*.safetensors"):
        stored |= load_file(file)
    # What it does not undo is a prefix that the file lacks; and it names ESM's norms as TensorFlow does.
    prefix = model.base_model_prefix + "."
    spellings = (str, lambda name: name.removeprefix(prefix), torch_norms)
    gradients = {
        next(spell(name) for spell in spellings if spell(name) in stored): gradient
        for name, gradient in gradients.items()
    }
    for name, gradient in gradients.items():
        assert stored[name].shape == gradient.shape, (folder.name, name)
    return gradients


def make(case: Case) -> None:
    folder = HERE / case.name
    shutil.rmtree(folder, ignore_errors=True)
    seed(case.name)
    original = case.model._from_config(case.config, **EXPERTS)
    redraw(original)
    case.prepare(original)
    original.save_pretrained(folder, **case.save_arguments)
    (folder / "generation_config.json").unlink(missing_ok=True)
    case.finish(folder)

    inputs = draw_inputs(case)
    model = load(case.model, folder)
    outputs = run(model, inputs)
    weights = {n: output_weight(o, padding_mask(n, o, inputs)) for n, o in outputs.items()}
    # The model that was saved must agree: so the files lost nothing, whatever `finish` did to them,
    # and the two implementations of attention compute the same.
    assert original.config._attn_implementation == ("sdpa" if original._supports_sdpa else "eager")
    others = run(original.float().eval(), inputs)
    for name, output in outputs.items():
        # The weight is zero at padding, and nowhere else.
        difference = ((output - others[name]) * (weights[name] != 0)).abs().max()
        assert difference < 1e-5, f"{case.name}: {name} differs by {difference} after loading"
    weighted_loss(outputs, weights).backward()
    save_outputs(folder, inputs, outputs, weights)
    save(folder / "gradients.safetensors", gradients_as_saved(model, folder))
    if hasattr(model, "predict_contacts"):
        mask = inputs.get("attention_mask")
        mask = torch.ones_like(inputs["input_ids"]) if mask is None else mask
        with torch.no_grad():
            contacts = model.predict_contacts(inputs["input_ids"], mask)
        save(folder / "contacts.safetensors", {"contacts": contacts})


# Changes to what `save_pretrained` wrote.


def edit_weights(folder: Path, edit: Callable[[Tensors], Tensors]) -> None:
    path = folder / "model.safetensors"
    save_file(edit(load_file(path)), path, metadata={"format": "pt"})


def rounded_to(dtype: torch.dtype) -> Callable[[hf.PreTrainedModel], None]:
    # Not `model.to(dtype)`, which also rounds the frequencies of the rotary positions.
    def prepare(model: hf.PreTrainedModel) -> None:
        for parameter in model.parameters():
            parameter.data = parameter.data.to(dtype).float()

    return prepare


def stored_as(dtype: torch.dtype) -> Callable[[Path], None]:
    def finish(folder: Path) -> None:
        edit_weights(folder, lambda tensors: {name: t.to(dtype) for name, t in tensors.items()})
        edit_json(folder / "config.json", lambda config: config.update(dtype=str(dtype).removeprefix("torch.")))

    return finish


def as_transformers_4(folder: Path) -> None:
    """Rewrites config.json as transformers 4 wrote it, which most of the hub still is."""

    def edit(config: dict[str, Any]) -> None:
        config["torch_dtype"] = config.pop("dtype")
        config["transformers_version"] = "4.40.0"
        for name in ("layer_types", "head_dim"):
            config.pop(name, None)
        rope = config.pop("rope_parameters")
        theta, kind = rope.pop("rope_theta"), rope.pop("rope_type")
        if config["model_type"] == "gpt_neox":
            config["rotary_emb_base"] = theta
            config["rotary_pct"] = rope.pop("partial_rotary_factor")
        else:
            config["rope_theta"] = theta
        # `type` was the name before `rope_type`, which came with llama3.
        key = "rope_type" if kind == "llama3" else "type"
        config["rope_scaling"] = None if kind == "default" else {key: kind, **rope}

    edit_json(folder / "config.json", edit)


def untie_t5(model: hf.PreTrainedModel) -> None:
    """Gives T5 1.1 its own head: transformers 5 ties every T5 unless the file has two tables."""
    model.lm_head.weight = nn.Parameter(torch.randn_like(model.lm_head.weight) * 0.25)
    del model.all_tied_weights_keys["lm_head.weight"]


def as_t5_on_the_hub(folder: Path) -> None:
    def edit(config: dict[str, Any]) -> None:
        config["torch_dtype"] = config.pop("dtype")
        config["transformers_version"] = "4.40.0"
        # Transformers 5 reads from this that outputs are not scaled, and writes that instead.
        config["tie_word_embeddings"] = config.pop("scale_decoder_outputs")
        for name in ("dense_act_fn", "is_gated_act"):
            del config[name]

    edit_json(folder / "config.json", edit)


def as_gpt2_on_the_hub(folder: Path) -> None:
    """No prefix, no head, and the masks that were once saved as buffers."""

    def edit(tensors: Tensors) -> Tensors:
        tensors = {name.removeprefix("transformer."): t for name, t in tensors.items()}
        assert "lm_head.weight" not in tensors
        for layer in range(2):
            mask = torch.tril(torch.ones(1, 1, 16, 16))
            tensors[f"h.{layer}.attn.bias"] = mask
            tensors[f"h.{layer}.attn.masked_bias"] = torch.tensor(-1e4)
        return tensors

    edit_weights(folder, edit)


def torch_norms(name: str) -> str:
    return name.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias")


def as_esm_on_the_hub(folder: Path) -> None:
    """Undoes two slips of transformers 5.24, which writes TensorFlow's names of the norms and one
    entry whose name has an asterisk, and adds what the hub's files have and nothing reads."""

    def edit(tensors: Tensors) -> Tensors:
        tensors = {torch_norms(name): t for name, t in tensors.items()}
        for starred in [name for name in tensors if "*" in name]:
            frequencies = tensors.pop(starred)
            for layer in range(2):
                tensors[starred.replace("*", str(layer))] = frequencies.clone()
            prefix = starred.partition("encoder.")[0] + "embeddings."
            width = tensors[prefix + "word_embeddings.weight"].shape[1]
            tensors[prefix + "position_ids"] = torch.arange(16)[None]
            tensors[prefix + "position_embeddings.weight"] = torch.ones(16, width)
        return tensors

    edit_weights(folder, edit)


def as_bert_on_the_hub(folder: Path) -> None:
    """TensorFlow's names of the norms, and entries that are no parameters of their own."""

    def edit(tensors: Tensors) -> Tensors:
        def rename(name: str) -> str:
            return name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")

        positions = tensors["bert.embeddings.position_embeddings.weight"].shape[0]
        tensors = {rename(name): t for name, t in tensors.items()}
        tensors["bert.embeddings.position_ids"] = torch.arange(positions)[None]
        tensors["cls.predictions.decoder.bias"] = tensors["cls.predictions.bias"].clone()
        return tensors

    edit_weights(folder, edit)


def gpt2_cases() -> Iterator[Case]:
    def config(**more: Any) -> hf.GPT2Config:
        base = dict(vocab_size=37, n_positions=16, n_embd=15, n_layer=2, n_head=3, bos_token_id=1, eos_token_id=2)
        return hf.GPT2Config(**base | more)

    yield Case("gpt2", hf.GPT2LMHeadModel, config())
    yield Case(
        "gpt2-base",
        hf.GPT2Model,
        config(n_layer=3, n_inner=22, activation_function="relu", scale_attn_by_inverse_layer_idx=True),
        lengths=(9, 9),
    )
    yield Case(
        "gpt2-sequence", hf.GPT2ForSequenceClassification, config(pad_token_id=36, num_labels=3), lengths=(10, 7, 9)
    )
    yield Case("gpt2-token", hf.GPT2ForTokenClassification, config(num_labels=4), lengths=(7, 10))
    yield Case("gpt2-prefixless", hf.GPT2LMHeadModel, config(), finish=as_gpt2_on_the_hub)


def bert_cases() -> Iterator[Case]:
    def config(**more: Any) -> hf.BertConfig:
        base = dict(
            vocab_size=35,
            hidden_size=15,
            num_hidden_layers=2,
            num_attention_heads=5,
            intermediate_size=22,
            max_position_embeddings=14,
        )
        return hf.BertConfig(**base | more)

    both = dict(lengths=(12, 7), segments=2)
    yield Case("bert", hf.BertModel, config(hidden_act="relu"), **both)
    yield Case(
        "bert-pretraining", hf.BertForPreTraining, config(type_vocab_size=3), lengths=(13, 9, 11), segments=3
    )
    yield Case("bert-masked", hf.BertForMaskedLM, config(hidden_act="gelu_new", tie_word_embeddings=True), **both)
    yield Case("bert-sequence", hf.BertForSequenceClassification, config(num_labels=3), **both)
    yield Case("bert-token", hf.BertForTokenClassification, config(num_labels=4), **both)
    yield Case("bert-question", hf.BertForQuestionAnswering, config(), **both)
    yield Case("bert-next-sentence", hf.BertForNextSentencePrediction, config(), **both)
    yield Case("bert-gamma-beta", hf.BertForPreTraining, config(), **both, finish=as_bert_on_the_hub)


def bloom_cases() -> Iterator[Case]:
    def config(**more: Any) -> hf.BloomConfig:
        return hf.BloomConfig(**dict(vocab_size=41, hidden_size=15, n_layer=2, n_head=5, pad_token_id=3) | more)

    yield Case("bloom", hf.BloomForCausalLM, config(), lengths=(7, 12, 9))
    yield Case(
        "bloom-base",
        hf.BloomModel,
        config(n_head=3, apply_residual_connection_post_layernorm=True),
        lengths=(11, 7),
        left=True,
    )
    yield Case(
        "bloom-sequence", hf.BloomForSequenceClassification, config(n_head=3, num_labels=3), lengths=(8, 11, 10)
    )


def llama_cases() -> Iterator[Case]:
    def config(**more: Any) -> hf.LlamaConfig:
        base = dict(
            vocab_size=37,
            hidden_size=24,
            num_hidden_layers=2,
            num_attention_heads=6,
            num_key_value_heads=2,
            intermediate_size=22,
            max_position_embeddings=32,
            rope_parameters={"rope_type": "default", "rope_theta": 500.0},
        )
        return hf.LlamaConfig(**base | more)

    def rope(kind: str, theta: float = 100.0, **more: Any) -> hf.LlamaConfig:
        # Heads of 8 have four frequencies, enough to reach every branch of the scalings.
        parameters = {"rope_type": kind, "rope_theta": theta, **more}
        return config(num_attention_heads=3, num_key_value_heads=1, rope_parameters=parameters)

    linear, dynamic = rope("linear", factor=2.5), rope("dynamic", factor=2.0)
    # Fewer than the case has.
    dynamic.max_position_embeddings = 8
    llama3 = rope(
        "llama3", factor=4.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=32
    )
    llama3.max_position_embeddings = 64

    yield Case("llama", hf.LlamaForCausalLM, config())
    yield Case("llama-v4", hf.LlamaForCausalLM, config(), finish=as_transformers_4)
    yield Case("llama-linear", hf.LlamaForCausalLM, linear)
    yield Case("llama-linear-v4", hf.LlamaForCausalLM, linear, finish=as_transformers_4)
    yield Case("llama-llama3", hf.LlamaForCausalLM, llama3)
    yield Case("llama-llama3-v4", hf.LlamaForCausalLM, llama3, finish=as_transformers_4)
    yield Case("llama-dynamic", hf.LlamaForCausalLM, dynamic, lengths=(13, 13))
    yield Case(
        "llama-sequence",
        hf.LlamaForSequenceClassification,
        config(pad_token_id=0, num_labels=3),
        lengths=(9, 12),
    )
    yield Case(
        "llama-tied-bias",
        hf.LlamaForCausalLM,
        config(hidden_size=18, head_dim=4, attention_bias=True, mlp_bias=True, tie_word_embeddings=True),
        lengths=(12, 10),
    )
    yield Case("sharded", hf.LlamaForCausalLM, config(), save_arguments={"max_shard_size": "12KB"})
    for dtype in (torch.bfloat16, torch.float16):
        name = str(dtype).removeprefix("torch.")
        yield Case(name, hf.LlamaForCausalLM, config(), prepare=rounded_to(dtype), finish=stored_as(dtype))


def encoder_cases() -> Iterator[Case]:
    """RoBERTa, Megatron BERT and ESM."""
    base = dict(hidden_size=15, num_hidden_layers=2, num_attention_heads=5, intermediate_size=22)

    def roberta(**more: Any) -> hf.RobertaConfig:
        # Padding token 1: positions of real tokens begin at 2, so two rows of the table go unused.
        return hf.RobertaConfig(**base | dict(vocab_size=39, max_position_embeddings=16, type_vocab_size=1) | more)

    def megatron(**more: Any) -> hf.MegatronBertConfig:
        return hf.MegatronBertConfig(**base | dict(vocab_size=35, max_position_embeddings=14) | more)

    def esm(**more: Any) -> hf.EsmConfig:
        special = dict(vocab_size=33, pad_token_id=1, mask_token_id=32, bos_token_id=0, max_position_embeddings=16)
        return hf.EsmConfig(**base | special | dict(layer_norm_eps=1e-5) | more)

    rotary = dict(hidden_size=18, num_attention_heads=3, position_embedding_type="rotary", token_dropout=True)

    yield Case("roberta", hf.RobertaModel, roberta(type_vocab_size=2), segments=2)
    yield Case("roberta-masked", hf.RobertaForMaskedLM, roberta(), lengths=(8, 13))
    yield Case("roberta-sequence", hf.RobertaForSequenceClassification, roberta(num_labels=3), lengths=(12, 10))

    segments = dict(lengths=(12, 9), segments=2)
    yield Case("megatron-bert", hf.MegatronBertForPreTraining, megatron(), **segments)
    yield Case("megatron-bert-masked", hf.MegatronBertForMaskedLM, megatron(hidden_act="gelu_new"), **segments)

    masked = esm(**rotary, emb_layer_norm_before=False)
    hub = dict(finish=as_esm_on_the_hub)
    yield Case("esm", hf.EsmForMaskedLM, masked, lengths=(13, 9, 11), **hub)
    yield Case("esm-v5", hf.EsmForMaskedLM, masked, lengths=(13, 9))
    yield Case("esm-base", hf.EsmModel, esm(emb_layer_norm_before=True), lengths=(8, 12), **hub)
    yield Case("esm-token", hf.EsmForTokenClassification, esm(**rotary, num_labels=4), lengths=(10, 10), **hub)


def t5_cases() -> Iterator[Case]:
    def config(**more: Any) -> hf.T5Config:
        base = dict(
            vocab_size=37,
            d_model=14,
            d_kv=4,
            d_ff=20,
            num_heads=5,
            num_layers=2,
            num_decoder_layers=1,
            # Small enough for sequences of a dozen tokens to reach the last, logarithmic buckets.
            relative_attention_num_buckets=8,
            relative_attention_max_distance=11,
            decoder_start_token_id=0,
        )
        return hf.T5Config(**base | more)

    inputs = dict(lengths=(13, 9), decoder_length=8)
    gated = dict(feed_forward_proj="gated-gelu", tie_word_embeddings=False, num_layers=1, num_decoder_layers=2)
    yield Case("t5", hf.T5ForConditionalGeneration, config(), **inputs)
    yield Case("t5-base-model", hf.T5Model, config(num_decoder_layers=2), **inputs)
    yield Case("t5-encoder", hf.T5EncoderModel, config(), lengths=(9, 13))
    long = dict(lengths=(11, 8), decoder_length=13, prepare=untie_t5)
    yield Case("t5-v1-1", hf.T5ForConditionalGeneration, config(**gated), **long)
    yield Case("t5-v1-1-v4", hf.T5ForConditionalGeneration, config(**gated), **long, finish=as_t5_on_the_hub)


def eleuther_cases() -> Iterator[Case]:
    def neox(**more: Any) -> hf.GPTNeoXConfig:
        base = dict(
            vocab_size=37,
            hidden_size=24,
            num_hidden_layers=2,
            num_attention_heads=3,
            intermediate_size=22,
            max_position_embeddings=32,
            rope_parameters={"rope_type": "default", "rope_theta": 100.0, "partial_rotary_factor": 0.5},
        )
        return hf.GPTNeoXConfig(**base | more)

    neo = hf.GPTNeoConfig(
        vocab_size=37,
        max_position_embeddings=16,
        hidden_size=15,
        num_layers=2,
        num_heads=3,
        attention_types=[[["global", "local"], 1]],
        window_size=4,
        bos_token_id=1,
        eos_token_id=2,
    )
    yield Case("gpt-neo", hf.GPTNeoForCausalLM, neo, lengths=(13, 10))
    yield Case("gpt-neox", hf.GPTNeoXForCausalLM, neox())
    yield Case("gpt-neox-v4", hf.GPTNeoXForCausalLM, neox(), finish=as_transformers_4)
    yield Case(
        "gpt-neox-sequential",
        hf.GPTNeoXForCausalLM,
        neox(use_parallel_residual=False, tie_word_embeddings=True, hidden_act="gelu_fast"),
    )


def mistral_cases() -> Iterator[Case]:
    """Mistral and those that differ from Llama in one thing, as it does."""
    base = dict(
        vocab_size=37,
        hidden_size=24,
        num_hidden_layers=2,
        num_attention_heads=6,
        num_key_value_heads=3,
        intermediate_size=22,
        max_position_embeddings=32,
        rope_parameters={"rope_type": "default", "rope_theta": 500.0},
    )
    window = dict(use_sliding_window=True, sliding_window=4, max_window_layers=1)
    mixtral = dict(num_local_experts=5, num_experts_per_tok=2, intermediate_size=11)
    qwen2, qwen2_window = hf.Qwen2Config(**base), hf.Qwen2Config(**base | window)
    yield Case("mistral", hf.MistralForCausalLM, hf.MistralConfig(**base, sliding_window=4), lengths=(13, 9))
    yield Case("qwen2", hf.Qwen2ForCausalLM, qwen2)
    yield Case("qwen2-v4", hf.Qwen2ForCausalLM, qwen2, finish=as_transformers_4)
    yield Case("qwen2-window", hf.Qwen2ForCausalLM, qwen2_window, lengths=(9, 13))
    yield Case("qwen2-window-v4", hf.Qwen2ForCausalLM, qwen2_window, lengths=(9, 13), finish=as_transformers_4)
    yield Case("mixtral", hf.MixtralForCausalLM, hf.MixtralConfig(**base | mixtral), lengths=(7, 11))


# --- Cases of components that Hugging Face has no class for -----------------------------------------
#
# Written as slowly and plainly as they can be: one attention query and one token at a time. Names
# are the paths of the zoo, and a linear layer's weight is [in, out].


class Parameters(dict[str, Tensor]):
    """Parameters by name, and the layers that read them."""

    def draw(self, name: str, shape: list[int], mean: float = 0.0, deviation: float = 0.25) -> None:
        self[name] = (mean + deviation * torch.randn(shape)).requires_grad_()

    def draw_linear(self, name: str, wide: int, out: int, bias: bool = True, deviation: float = 0.25) -> None:
        self.draw(f"{name}.weight", [wide, out], deviation=deviation)
        if bias:
            self.draw(f"{name}.bias", [out], deviation=0.1)

    def draw_norm(self, name: str, width: int, bias: bool = True) -> None:
        self.draw(f"{name}.weight", [width], 1.0, 0.1)
        if bias:
            self.draw(f"{name}.bias", [width], deviation=0.1)

    def draw_attention(self, block: str, width: int, inner: int, bias: bool = True) -> None:
        self.draw_norm(f"{block}.attention_norm", width, bias)
        for part in ("query", "key", "value"):
            self.draw_linear(f"{block}.attention.{part}", width, inner, bias)
        self.draw_linear(f"{block}.attention.output", inner, width, bias)
        self.draw_norm(f"{block}.feed_forward_norm", width, bias)

    def linear(self, name: str, x: Tensor) -> Tensor:
        y = x @ self[f"{name}.weight"]
        return y + self[f"{name}.bias"] if f"{name}.bias" in self else y

    def layer_norm(self, name: str, x: Tensor, epsilon: float) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        scaled = centred / torch.sqrt((centred**2).mean(-1, keepdim=True) + epsilon)
        return scaled * self[f"{name}.weight"] + self[f"{name}.bias"]

    def rms_norm(self, name: str, x: Tensor, epsilon: float) -> Tensor:
        return x / torch.sqrt((x**2).mean(-1, keepdim=True) + epsilon) * self[f"{name}.weight"]

    def attention(
        self,
        name: str,
        x: Tensor,
        heads: int,
        scale: float,
        visible: Callable[[int, int], bool],
        bias: Callable[[int, int, int], Tensor | float] = lambda head, i, j: 0.0,
    ) -> Tensor:
        """Of one sequence, [tokens, width]; `visible(i, j)` is whether i may look at j."""
        query, key, value = (self.linear(f"{name}.{part}", x) for part in ("query", "key", "value"))
        size = query.shape[1] // heads
        rows = []
        for i in range(len(x)):
            seen = [j for j in range(len(x)) if visible(i, j)]
            parts = []
            for head in range(heads):
                own = slice(head * size, (head + 1) * size)
                scores = [scale * query[i, own].dot(key[j, own]) + bias(head, i, j) for j in seen]
                shares = torch.softmax(torch.stack(scores), 0)
                parts.append(sum(share * value[j, own] for share, j in zip(shares, seen)))
            rows.append(torch.cat(parts))
        return self.linear(f"{name}.output", torch.stack(rows))


def gelu(x: Tensor) -> Tensor:
    return 0.5 * x * (1 + torch.erf(x / math.sqrt(2)))


def gelu_tanh(x: Tensor) -> Tensor:
    return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def finish_component(
    name: str, config: dict[str, Any], parameters: Parameters, inputs: Inputs, outputs: Tensors
) -> None:
    folder = HERE / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    write_json(folder / "config.json", config)
    save(folder / "model.safetensors", parameters)
    weights = {}
    for key, output in outputs.items():
        mask = inputs.get("attention_mask")
        # The two losses of the router weigh one.
        weights[key] = torch.ones(1) if output.numel() == 1 else output_weight(output, mask)
    weighted_loss(outputs, weights).backward()
    save_outputs(folder, inputs, outputs, weights)
    # An expert that no token reached has no gradient.
    save(folder / "gradients.safetensors", {n: p.grad for n, p in parameters.items() if p.grad is not None})


def make_lamda(name: str) -> None:
    """A decoder of T5's parts."""
    seed(name)
    config = dict(
        model_type="lamda",
        architectures=["LamdaForCausalLM"],
        vocab_size=37,
        d_model=14,
        d_ff=20,
        d_kv=4,
        num_heads=5,
        num_layers=2,
        context_length=32,
        relative_attention_num_buckets=8,
        relative_attention_max_distance=20,
        layer_norm_epsilon=1e-6,
        tie_word_embeddings=False,
        scale_attention=False,
    )
    width, heads, epsilon = config["d_model"], config["num_heads"], config["layer_norm_epsilon"]
    buckets, furthest = config["relative_attention_num_buckets"], config["relative_attention_max_distance"]
    p = Parameters()
    p.draw("embedding.token", [config["vocab_size"], width], deviation=0.5)
    p.draw("stack.relative.table", [buckets, heads], deviation=0.5)
    for layer in range(config["num_layers"]):
        block = f"stack.blocks.{layer}"
        p.draw_attention(block, width, heads * config["d_kv"], bias=False)
        for part in ("up", "gate"):
            p.draw_linear(f"{block}.feed_forward.{part}", width, config["d_ff"], bias=False)
        p.draw_linear(f"{block}.feed_forward.down", config["d_ff"], width, bias=False)
    p.draw_norm("stack.final_norm", width, bias=False)
    p.draw_linear("head.projection", width, config["vocab_size"], bias=False)

    def bucket(distance: int) -> int:
        exact = buckets // 2
        if distance < exact:
            return distance
        # The other half grows with the logarithm, and its last takes everything further off.
        share = math.log(distance / exact) / math.log(furthest / exact)
        return min(exact + int(share * (buckets - exact)), buckets - 1)

    input_ids = torch.randint(config["vocab_size"], (2, 25))
    assert {bucket(distance) for distance in range(25)} == set(range(buckets))
    logits = []
    for ids in input_ids:
        x = p["embedding.token"][ids]
        for layer in range(config["num_layers"]):
            block = f"stack.blocks.{layer}"
            x = x + p.attention(
                f"{block}.attention",
                p.rms_norm(f"{block}.attention_norm", x, epsilon),
                heads,
                scale=1.0,
                visible=lambda i, j: j <= i,
                bias=lambda head, i, j: p["stack.relative.table"][bucket(i - j), head],
            )
            y = p.rms_norm(f"{block}.feed_forward_norm", x, epsilon)
            up, gate = (p.linear(f"{block}.feed_forward.{part}", y) for part in ("up", "gate"))
            x = x + p.linear(f"{block}.feed_forward.down", gelu_tanh(gate) * up)
        logits.append(p.linear("head.projection", p.rms_norm("stack.final_norm", x, epsilon)))
    finish_component(name, config, p, {"input_ids": input_ids}, {"logits": torch.stack(logits)})


def make_gpt3(name: str) -> None:
    """GPT-2 whose odd layers see a window."""
    seed(name)
    config = dict(
        model_type="gpt3",
        architectures=["Gpt3ForCausalLM"],
        vocab_size=37,
        d_model=15,
        d_ff=22,
        n_heads=3,
        n_layers=3,
        context_length=16,
        window=3,
        layer_norm_epsilon=1e-5,
    )
    width, heads, epsilon = config["d_model"], config["n_heads"], config["layer_norm_epsilon"]
    p = Parameters()
    p.draw("embedding.token", [config["vocab_size"], width], deviation=0.5)
    p.draw("embedding.position", [config["context_length"], width], deviation=0.5)
    for layer in range(config["n_layers"]):
        block = f"stack.blocks.{layer}"
        p.draw_attention(block, width, width)
        p.draw_linear(f"{block}.feed_forward.up", width, config["d_ff"])
        p.draw_linear(f"{block}.feed_forward.down", config["d_ff"], width)
    p.draw_norm("stack.final_norm", width)

    lengths = torch.tensor([13, 10])
    mask = (torch.arange(13) < lengths[:, None]).long()
    # Padding is to the right, where no real token of a causal model looks: no mask is needed.
    input_ids = torch.randint(1, config["vocab_size"], (2, 13)) * mask
    logits = []
    for ids in input_ids:
        x = p["embedding.token"][ids] + p["embedding.position"][: len(ids)]
        for layer in range(config["n_layers"]):
            block = f"stack.blocks.{layer}"
            window = config["window"] if layer % 2 == 1 else len(ids)
            x = x + p.attention(
                f"{block}.attention",
                p.layer_norm(f"{block}.attention_norm", x, epsilon),
                heads,
                scale=1 / math.sqrt(width // heads),
                visible=lambda i, j, window=window: i - window < j <= i,
            )
            y = p.layer_norm(f"{block}.feed_forward_norm", x, epsilon)
            x = x + p.linear(f"{block}.feed_forward.down", gelu_tanh(p.linear(f"{block}.feed_forward.up", y)))
        logits.append(p.layer_norm("stack.final_norm", x, epsilon) @ p["embedding.token"].T)
    inputs = {"input_ids": input_ids, "attention_mask": mask}
    finish_component(name, config, p, inputs, {"logits": torch.stack(logits)})


def mixture(
    p: Parameters, name: str, tokens: Tensor, experts: int, choices: int, capacity: int | None
) -> tuple[Tensor, Tensor, Tensor]:
    """What the experts make of the tokens [tokens, width], and the two losses of the router."""
    logits = p.linear(f"{name}.router", tokens)
    order = logits.argsort(dim=1, descending=True)
    check_choice(logits, choices)
    used = [0] * experts
    rows = [torch.zeros_like(token) for token in tokens]
    dropped = 0
    # Every first choice is placed before any second one.
    for choice in range(choices):
        for token in range(len(tokens)):
            expert = int(order[token, choice])
            used[expert] += 1
            if capacity is not None and used[expert] > capacity:
                dropped += 1
                continue
            if choices == 1:
                # Among one the share would be constant, and the router would not learn.
                share = torch.softmax(logits[token], 0)[expert]
            else:
                share = torch.softmax(logits[token][order[token, :choices]], 0)[choice]
            inner = gelu(p.linear(f"{name}.experts.{expert}.up", tokens[token]))
            rows[token] = rows[token] + share * p.linear(f"{name}.experts.{expert}.down", inner)
    assert (dropped > 0) == (capacity is not None), f"{name}: {dropped} dropped"

    shares = torch.softmax(logits, 1).mean(0)
    first = torch.tensor([(order[:, 0] == expert).float().mean() for expert in range(experts)])
    balance = experts * (first * shares).sum()
    return torch.stack(rows), balance, (torch.logsumexp(logits, 1) ** 2).mean()


def make_wudao2(name: str, layers: int = 2, choices: int = 2, every: int = 1, factor: float | None = None) -> None:
    """GLM, which sees all of a prefix and fills in what follows, with experts."""
    seed(name)
    config = dict(
        model_type="wudao2",
        architectures=["Wudao2ForBlankInfilling"],
        vocab_size=37,
        hidden_size=15,
        intermediate_size=10,
        num_attention_heads=3,
        num_hidden_layers=layers,
        max_position_embeddings=14,
        num_experts=5,
        experts_per_token=choices,
        capacity_factor=factor,
        expert_every=every,
        layer_norm_epsilon=1e-5,
    )
    width, inner, heads = config["hidden_size"], config["intermediate_size"], config["num_attention_heads"]
    experts, epsilon = config["num_experts"], config["layer_norm_epsilon"]
    # With `every` 2 the mixtures are layers 1, 3 and so on.
    mixed = [layer for layer in range(layers) if (layer + 1) % every == 0]
    p = Parameters()
    # Tokens far enough apart that all experts get some.
    p.draw("embedding.token", [config["vocab_size"], width], deviation=1.0)
    for table in ("position", "block_position"):
        p.draw(f"embedding.{table}", [config["max_position_embeddings"] + 1, width], deviation=0.5)
    for layer in range(layers):
        block = f"stack.blocks.{layer}"
        p.draw_attention(block, width, width)
        if layer in mixed:
            p.draw_linear(f"{block}.mixture.router", width, experts, deviation=0.5)
        names = [f"mixture.experts.{e}" for e in range(experts)] if layer in mixed else ["feed_forward"]
        for part in names:
            p.draw_linear(f"{block}.{part}.up", width, inner)
            p.draw_linear(f"{block}.{part}.down", inner, width)
    p.draw_norm("stack.final_norm", width)

    length, prefixes = 11, [4, 7]
    input_ids = torch.randint(config["vocab_size"], (2, length))
    capacity = None if factor is None else math.ceil(factor * input_ids.numel() * choices / experts)
    states = []
    for ids, prefix in zip(input_ids, prefixes):
        position = torch.tensor([min(i, prefix - 1) for i in range(length)])
        block_position = torch.tensor([max(0, i - prefix + 1) for i in range(length)])
        x = p["embedding.token"][ids] + p["embedding.position"][position]
        states.append(x + p["embedding.block_position"][block_position])
    balances, squares = [], []
    for layer in range(layers):
        block = f"stack.blocks.{layer}"
        for row, prefix in enumerate(prefixes):
            states[row] = states[row] + p.attention(
                f"{block}.attention",
                p.layer_norm(f"{block}.attention_norm", states[row], epsilon),
                heads,
                scale=1 / math.sqrt(width // heads),
                visible=lambda i, j, prefix=prefix: j <= i or j < prefix,
            )
        # The experts take the tokens of the whole batch, sequence by sequence.
        x = torch.cat(states)
        y = p.layer_norm(f"{block}.feed_forward_norm", x, epsilon)
        if layer in mixed:
            y, balance, square = mixture(p, f"{block}.mixture", y, experts, choices, capacity)
            balances.append(balance)
            squares.append(square)
        else:
            y = p.linear(f"{block}.feed_forward.down", gelu_tanh(p.linear(f"{block}.feed_forward.up", y)))
        states = list((x + y).split(length))
    logits = [p.layer_norm("stack.final_norm", x, epsilon) @ p["embedding.token"].T for x in states]
    outputs = {
        "logits": torch.stack(logits),
        "load_balance": torch.stack(balances).mean()[None],
        "router_z": torch.stack(squares).mean()[None],
    }
    inputs = {"input_ids": input_ids, "prefix_lengths": torch.tensor(prefixes)}
    finish_component(name, config, p, inputs, outputs)


COMPONENTS: dict[str, Callable[[str], None]] = {
    "lamda": make_lamda,
    "gpt3": make_gpt3,
    "wudao2": make_wudao2,
    "wudao2-capacity": lambda name: make_wudao2(name, layers=4, every=2, factor=0.6),
    "switch-top1": lambda name: make_wudao2(name, choices=1, factor=1.0),
}


# --- All cases --------------------------------------------------------------------------------------


FAMILIES = (
    gpt2_cases,
    bert_cases,
    encoder_cases,
    t5_cases,
    bloom_cases,
    eleuther_cases,
    llama_cases,
    mistral_cases,
)


def cases() -> dict[str, Callable[[], None]]:
    everything: dict[str, Callable[[], None]] = {}
    for family in FAMILIES:
        for case in family():
            everything[case.name] = lambda case=case: make(case)
    for name, component in COMPONENTS.items():
        everything[name] = lambda name=name, component=component: component(name)
    return everything


def main(names: list[str]) -> None:
    # One thread, so that sums are added in the same order on every machine.
    torch.set_num_threads(1)
    hf.logging.set_verbosity_error()
    hf.logging.disable_progress_bar()
    everything = cases()
    for name in names or everything:
        everything[name]()
        size = sum(file.stat().st_size for file in (HERE / name).iterdir())
        print(f"{name:20} {size:8}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
