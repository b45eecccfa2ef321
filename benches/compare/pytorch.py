"""PyTorch's side of `burn-zoo bench`: the same work by `torch`, `transformers` and `sentence-transformers`.

    pytorch.py train [--n-layers N …] | train --bert | generate | encode DIR --text FILE

Prints JSON with the fields that `burn-zoo bench … --json` gives the same things.
"""

import argparse
import json
import resource
import statistics
import time

import torch
from torch import nn
from torch.nn import functional as F


class Block(nn.Module):
    """A block of GPT-2, with PyTorch's fused attention."""

    def __init__(self, width, n_heads):
        super().__init__()
        self.n_heads = n_heads
        self.norm_1, self.norm_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x):
        batch, seq, width = x.shape
        heads = self.qkv(self.norm_1(x)).view(batch, seq, 3, self.n_heads, -1)
        query, key, value = heads.permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).reshape(batch, seq, width))
        return x + self.down(F.gelu(self.up(self.norm_2(x)), approximate="tanh"))


class Gpt(nn.Module):
    """A GPT as `burn-zoo bench train` has it: a head tied to the embedding."""

    def __init__(self, options):
        super().__init__()
        self.token = nn.Embedding(options.vocab_size, options.d_model)
        self.place = nn.Embedding(options.context_length, options.d_model)
        self.blocks = nn.ModuleList(Block(options.d_model, options.n_heads) for _ in range(options.n_layers))
        self.norm = nn.LayerNorm(options.d_model)
        for parameter in self.parameters():
            if parameter.dim() > 1:
                nn.init.normal_(parameter, std=0.02)

    def loss(self, tokens, targets):
        x = self.token(tokens) + self.place.weight[: tokens.shape[1]]
        for block in self.blocks:
            x = block(x)
        logits = F.linear(self.norm(x), self.token.weight)
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten())


def memory():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def train(options):
    shape = (options.batch_size, options.context_length)
    if options.bert:
        from transformers import BertConfig, BertForMaskedLM

        # The zoo measures without dropout too.
        config = BertConfig(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
        model, vocab_size = BertForMaskedLM(config), config.vocab_size
    else:
        model, vocab_size = Gpt(options), options.vocab_size
    tokens = torch.randint(vocab_size, shape)
    targets = torch.randint(vocab_size, shape)
    if options.bert:
        targets[torch.arange(targets.numel()).view(shape) % 7 != 0] = -100
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)

    def step():
        optimizer.zero_grad()
        loss = model(input_ids=tokens, labels=targets).loss if options.bert else model.loss(tokens, targets)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        loss.item()

    milliseconds = measured(step, options.warmup, options.steps)
    return {"step_ms": statistics.median(milliseconds), "min_step_ms": min(milliseconds)}


def measured(action, warmup, count):
    for _ in range(warmup):
        action()
    milliseconds = []
    for _ in range(count):
        started = time.perf_counter()
        action()
        milliseconds.append(1e3 * (time.perf_counter() - started))
    return milliseconds


@torch.no_grad()
def generate(options):
    from transformers import GPT2Config, GPT2LMHeadModel

    model = GPT2LMHeadModel(GPT2Config()).eval()
    tokens = torch.randint(50257, (1, options.prompt_tokens))

    def write(count):
        return lambda: model.generate(
            tokens, attention_mask=torch.ones_like(tokens), min_new_tokens=count, max_new_tokens=count,
            do_sample=False, pad_token_id=0,
        )

    prefill = statistics.median(measured(write(1), 1, options.rounds))
    total = statistics.median(measured(write(options.new_tokens), 1, options.rounds))
    return {"prefill_ms": prefill, "total_ms": total, "tokens_per_second": 1e3 * options.new_tokens / total}


def encode(options):
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(options.directory, device="cpu")
    with open(options.text) as file:
        lines = [line.strip() for line in file.read().splitlines()]
    sentences = [line for line in lines if line][: options.sentences]
    total = statistics.median(measured(lambda: model.encode(sentences), 1, options.rounds))
    return {"total_ms": total, "sentences_per_second": 1e3 * len(sentences) / total}


def parse():
    parser = argparse.ArgumentParser()
    commands = parser.add_subparsers(required=True)

    def command(action, **numbers):
        subparser = commands.add_parser(action.__name__)
        subparser.set_defaults(action=action)
        for name, default in numbers.items():
            subparser.add_argument("--" + name.replace("_", "-"), type=int, default=default)
        return subparser

    sizes = {"n_layers": 4, "d_model": 128, "n_heads": 4, "vocab_size": 65, "context_length": 64, "batch_size": 12}
    command(train, steps=30, warmup=10, **sizes).add_argument("--bert", action="store_true")
    command(generate, prompt_tokens=128, new_tokens=128, rounds=5)
    encoding = command(encode, sentences=512, rounds=5)
    encoding.add_argument("directory")
    encoding.add_argument("--text", required=True)
    return parser.parse_args()


if __name__ == "__main__":
    options = parse()
    torch.manual_seed(1337)
    print(json.dumps({**options.action(options), "peak_memory_bytes": memory()}))
