#!/usr/bin/env python3
"""Checks that transformers reads what the zoo wrote, and computes from it what it should.

    round_trip.py [--tolerance 1e-5] DIR CASE_DIR [DIR CASE_DIR]...

Loads DIR, a checkpoint, with the class that its config.json names, runs the input of CASE_DIR, a
folder that make.py made, and compares with the outputs there. Prints one line for each pair, and
ends with an error if a key is missing, unexpected or of another shape, or an output differs.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import torch
import transformers
from safetensors.torch import load_file


def check(directory: Path, case: Path, tolerance: float) -> float:
    """The largest difference, at positions that count."""
    name = json.loads((directory / "config.json").read_text())["architectures"][0]
    model_class = getattr(transformers, name, None)
    if model_class is None:
        raise ValueError(f"transformers has no class {name}")
    model, report = model_class.from_pretrained(
        directory,
        output_loading_info=True,
        dtype=torch.float32,
        attn_implementation="eager",
        experts_implementation="eager",
    )
    faults = [f"{kind}: {sorted(map(str, keys))}" for kind, keys in report.items() if keys]
    if faults:
        raise ValueError("; ".join(faults))

    inputs = json.loads((case / "input.json").read_text())
    inputs = {key: torch.tensor(value) for key, value in inputs.items()}
    expected = load_file(case / "outputs.safetensors")
    with torch.no_grad():
        outputs = model.eval()(**inputs, return_dict=True)
    largest = 0.0
    for key in (key for key in expected if not key.startswith("weight.")):
        if outputs[key].shape != expected[key].shape:
            raise ValueError(f"{key}: {tuple(outputs[key].shape)}, not {tuple(expected[key].shape)}")
        # The weight is zero at padding, whose outputs mean nothing.
        counts = expected[f"weight.{key}"] != 0
        difference = (outputs[key] - expected[key])[counts].abs().max().item()
        if not difference <= tolerance:
            raise ValueError(f"{key}: differs by {difference:.2e}")
        largest = max(largest, difference)
    return largest


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pairs", nargs="+", type=Path, metavar="DIR CASE_DIR")
    parser.add_argument("--tolerance", type=float, default=1e-5)
    arguments = parser.parse_args()
    if len(arguments.pairs) % 2:
        parser.error("each DIR needs its CASE_DIR")

    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    failed = False
    for directory, case in zip(arguments.pairs[::2], arguments.pairs[1::2]):
        # Loading raises many kinds of errors; the pairs that follow should be checked all the same.
        try:
            print(f"ok {case.name} {check(directory, case, arguments.tolerance):.2e}", flush=True)
        except Exception as error:
            failed = True
            print(f"error {case.name}: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
