"""The perplexity of a text by a model that `transformers` opens: windows as "Perplexity of fixed-length models" has them.

Usage: perplexity.py MODEL TEXT STRIDE.  Prints JSON.
"""

import json
import math
import sys
from pathlib import Path

import torch


def log_likelihoods(model, ids):
    """log p of each token but the first."""
    with torch.no_grad():
        logits = model(torch.tensor([ids[:-1]])).logits[0].double()
    return logits.log_softmax(-1).gather(1, torch.tensor(ids[1:])[:, None])[:, 0]


def loss(model, ids, context, stride):
    """The mean of -log p."""
    total, count, known = 0.0, 0, 0
    for begin in range(0, len(ids), stride):
        end = min(begin + context, len(ids))
        new = min(end - known, end - begin - 1)
        if new > 0:
            total -= log_likelihoods(model, ids[begin:end])[-new:].sum().item()
            count += new
        known = end
        if end == len(ids):
            break
    return total / count


if __name__ == "__main__":
    from tokenizers import Tokenizer
    from transformers import AutoModelForCausalLM

    folder, path, stride = sys.argv[1:]
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    tokenizer = Tokenizer.from_file(str(Path(folder) / "tokenizer.json"))
    ids = tokenizer.encode(Path(path).read_text(encoding="utf-8")).ids
    context = model.config.max_position_embeddings
    print(json.dumps({"n_tokens": len(ids), "perplexity": math.exp(loss(model, ids, context, int(stride)))}))
