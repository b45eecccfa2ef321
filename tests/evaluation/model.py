"""Saves a small random GPT-2 with a tokenizer trained on a text, and scores the text.

Usage: model.py FOLDER TEXT.  Prints JSON.
"""

import json
import sys

import torch
from perplexity import log_likelihoods, loss
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

folder, path = sys.argv[1:]
text = open(path, encoding="utf-8").read()

tokenizer = Tokenizer(models.BPE())
tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
tokenizer.decoder = decoders.ByteLevel()
alphabet = pre_tokenizers.ByteLevel.alphabet()
tokenizer.train_from_iterator(
    [text],
    trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, special_tokens=["<|endoftext|>"]),
)
mark = "<|endoftext|>"
PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=mark, eos_token=mark).save_pretrained(folder)

torch.manual_seed(0)
config = GPT2Config(
    vocab_size=tokenizer.get_vocab_size(),
    n_positions=48,
    n_embd=32,
    n_layer=2,
    n_head=2,
    initializer_range=0.3,
    bos_token_id=0,
    eos_token_id=0,
)
model = GPT2LMHeadModel(config).eval()
model.save_pretrained(folder)

ids = tokenizer.encode(text).ids
windows = [[48, 24], [48, 48], [48, 7], [20, 1], [10, 9]]
pairs = [["The model", " reads"], ["", "tokens"], ["a trailing space ", "moves"], [text[:300], " end of it"]]
scores = []
for before, after in pairs:
    kept = before.rstrip()
    context = tokenizer.encode(kept).ids or [0]
    whole = ([] if kept else [0]) + tokenizer.encode(before + after).ids
    n = len(whole) - len(context)
    scores.append([log_likelihoods(model, whole[-49:])[-n:].sum().item(), n])
print(
    json.dumps(
        {
            "windows": [[context, stride, loss(model, ids, context, stride)] for context, stride in windows],
            "with_mark": loss(model, [0] + ids, 48, 24),
            "n_tokens": len(ids),
            "pairs": pairs,
            "scores": scores,
        }
    )
)
