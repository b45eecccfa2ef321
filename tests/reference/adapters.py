"""Adapters of Python's `peft`.

    adapters.py make DIR    writes models, adapters and what they give
    adapters.py read DIR    reads the adapters that the zoo left, and writes what they give
"""

import json
import sys
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BloomConfig,
    BloomForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
)

TOKENS = torch.tensor([[1, 5, 9, 2, 7], [3, 3, 8, 10, 4]])

CASES = {
    "bert": (
        BertForSequenceClassification,
        BertConfig(vocab_size=11, hidden_size=8, num_hidden_layers=2, num_attention_heads=2,
                   intermediate_size=12, max_position_embeddings=8, num_labels=3,
                   hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0),
        dict(r=2, lora_alpha=6, target_modules=["query", "value"], task_type="SEQ_CLS"),
    ),
    # Fused, and with the axes of Conv1D.
    "gpt2": (
        GPT2LMHeadModel,
        GPT2Config(vocab_size=11, n_embd=8, n_layer=2, n_head=2, n_positions=8),
        dict(r=3, lora_alpha=4, target_modules=["c_attn", "c_fc"], fan_in_fan_out=True),
    ),
    # Fused and interleaved, scaled by the root of the rank.
    "bloom": (
        BloomForCausalLM,
        BloomConfig(vocab_size=11, hidden_size=8, n_layer=2, n_head=2),
        dict(r=4, lora_alpha=8, target_modules=["query_key_value"], use_rslora=True),
    ),
    # Ranks that differ, and the head.
    "llama": (
        LlamaForCausalLM,
        LlamaConfig(vocab_size=11, hidden_size=8, num_hidden_layers=2, num_attention_heads=2,
                    num_key_value_heads=1, intermediate_size=12, max_position_embeddings=8),
        dict(r=2, lora_alpha=4, target_modules=["q_proj", "down_proj", "lm_head"],
             rank_pattern={"down_proj": 3}, alpha_pattern={"down_proj": 5}),
    ),
}


def logits(model):
    with torch.no_grad():
        return model.eval()(TOKENS).logits.flatten().tolist()


def make(folder):
    torch.manual_seed(1)
    for name, (kind, config, settings) in CASES.items():
        # Larger than initial values, so that mistakes show.
        config.initializer_range = 0.3
        base = folder / name / "base"
        kind(config).save_pretrained(base)
        # So that the adapter names it.
        model = kind.from_pretrained(base)
        plain = logits(model)
        model = get_peft_model(model, LoraConfig(**settings))
        for key, parameter in model.named_parameters():
            if "lora_" in key or "modules_to_save" in key:
                torch.nn.init.normal_(parameter, std=0.3)
        adapter = folder / name / "adapter"
        model.save_pretrained(adapter)
        assert plain != logits(model)
        (folder / name / "logits.json").write_text(json.dumps(logits(model)))


def read(folder):
    for name, (kind, config, _) in CASES.items():
        ours = folder / name / "ours"
        settings = {"num_labels": config.num_labels} if name == "bert" else {}
        base = kind.from_pretrained(folder / name / "base", **settings)
        model = PeftModel.from_pretrained(base, ours)
        (folder / name / "read.json").write_text(json.dumps(logits(model)))


{"make": make, "read": read}[sys.argv[1]](Path(sys.argv[2]))
