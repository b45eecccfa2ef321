"""Python's side of `cargo bench --bench tokenize`: `tokenizers` with the same files on the same text, on one core.

    tokenizing.py FOLDER-OF-TOKENIZERS TEXT

Prints the median and the extremes of MB/s: `first` just loaded, `again` with the words of the text in its cache.
"""

import os
import statistics
import sys
import time
from pathlib import Path

os.environ["TOKENIZERS_PARALLELISM"] = "false"
from tokenizers import Tokenizer  # noqa: E402, reads the variable

folder, text = Path(sys.argv[1]), Path(sys.argv[2]).read_text()
lines = text.splitlines()
megabytes = len(text.encode()) / 1e6


def speed(tokenizer):
    started = time.perf_counter()
    tokenizer.encode_batch(lines, add_special_tokens=False)
    return megabytes / (time.perf_counter() - started)


for path in sorted(folder.glob("*.json")):
    tokenizer = Tokenizer.from_file(str(path))
    speeds = {"first": [speed(Tokenizer.from_file(str(path))) for _ in range(10)]}
    speed(tokenizer)
    speeds["again"] = [speed(tokenizer) for _ in range(10)]
    for name, values in speeds.items():
        middle = statistics.median(values)
        print(f"{path.stem} {name}: {middle:.2f} MB/s ({min(values):.2f} to {max(values):.2f})")
