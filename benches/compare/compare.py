"""Runs `burn-zoo bench` and `pytorch.py` in turn and prints how one's times and memory compare with the other's.

    compare.py [--zoo PROGRAM] [--backend flex] [--rounds 3] [--encoder DIR --text FILE] [NAME …]

Names are those of `CASES`; without any, all are run. A ratio below 1 says that the zoo takes less. Each is given as the
median, the smallest and the largest over the rounds.
"""

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path


def sizes(n_layers, d_model, n_heads, vocab_size, context_length, batch_size):
    return [
        "--n-layers", n_layers, "--d-model", d_model, "--n-heads", n_heads, "--vocab-size", vocab_size,
        "--context-length", context_length, "--batch-size", batch_size,
    ]  # fmt: skip


BERT = ["--context-length", 128, "--batch-size", 8]
# Each core takes half of a batch, where one operation after the other is too short to share.
HALVES = ["--replicas", 2]
# What `bench` is told, arguments of both sides, of each alone, what is compared, and how many steps are measured.
CASES = {
    "train-s": ("train", sizes(4, 128, 4, 65, 64, 12), HALVES, [], "step_ms", 60),
    "train-m": ("train", sizes(6, 384, 6, 65, 256, 8), HALVES, [], "step_ms", 20),
    "train-l": ("train", sizes(12, 768, 12, 50257, 512, 2), [], [], "step_ms", 7),
    "bert": ("train", BERT, ["--preset", "bert-base"], ["--bert"], "step_ms", 7),
    **{
        f"context-{length}": ("train", sizes(4, 256, 4, 65, length, 8192 // length), [], [], "step_ms", 7)
        for length in (256, 512, 1024, 2048)
    },
    "decode": ("generate", [], ["--preset", "gpt2-124m"], [], "total_ms", None),
    "prefill": ("generate", ["--prompt-tokens", 1023, "--new-tokens", 1], ["--preset", "gpt2-124m"], [], "prefill_ms", None),
    "encode": ("encode", [], [], [], "total_ms", None),
}


def run(command):
    output = subprocess.run([str(part) for part in command], check=True, stdout=subprocess.PIPE)
    return json.loads(output.stdout)


def spread(values):
    return f"{statistics.median(values):.3f} ({min(values):.3f} to {max(values):.3f})"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help=", ".join(CASES))
    parser.add_argument("--zoo", default="burn-zoo", help="the program")
    parser.add_argument("--backend", default="flex")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--encoder", help="all-MiniLM-L6-v2")
    parser.add_argument("--text", help="its lines are encoded")
    options = parser.parse_args()
    for name in options.names or CASES:
        what, both, ours, theirs, measure, steps = CASES[name]
        if what == "encode":
            if not (options.encoder and options.text):
                print(f"{name}: needs --encoder and --text", file=sys.stderr)
                continue
            both = [options.encoder, "--text", options.text]
        if steps:
            both = [*both, "--steps", steps, "--warmup", max(2, steps // 5)]
        zoo = [options.zoo, "bench", what, *both, *ours, "--backend", options.backend, "--json"]
        torch = [sys.executable, Path(__file__).parent / "pytorch.py", what, *both, *theirs]
        pairs = [(run(zoo), run(torch)) for _ in range(options.rounds)]

        def ratios(key):
            return spread([left[key] / right[key] for left, right in pairs])

        def medians(key):
            return " and ".join(f"{statistics.median(side[key] for side in sides):.1f}" for sides in zip(*pairs))

        print(f"{name}: time {ratios(measure)}, {medians(measure)} ms; memory {ratios('peak_memory_bytes')}", end="")
        first = pairs[0][0]
        if "mfu" in first:
            print(f"; MFU {spread([left['mfu'] for left, _ in pairs])}", end="")
        if measure == "total_ms" and "bandwidth_limit" in first:
            shares = [left["decode_tokens_per_second"] / left["bandwidth_limit"] for left, _ in pairs]
            print(f"; of the bandwidth's limit {spread(shares)}", end="")
        print(flush=True)


if __name__ == "__main__":
    main()
