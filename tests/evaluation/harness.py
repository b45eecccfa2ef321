"""Runs tasks of a folder by lm-evaluation-harness on the model in it.

Usage: harness.py FOLDER SHOTS TASK...  Prints JSON: {task: {metric: [value, standard error or null]}}.
"""

import json
import os
import sys

folder, shots, *tasks = sys.argv[1:]
os.chdir(folder)
os.environ["HF_HOME"] = os.path.join(folder, "hf")
os.environ["HF_HUB_OFFLINE"] = os.environ["HF_DATASETS_OFFLINE"] = "1"

import lm_eval  # noqa: E402
from lm_eval.models.huggingface import HFLM  # noqa: E402
from lm_eval.tasks import TaskManager  # noqa: E402

model = HFLM(pretrained=folder, device="cpu", dtype="float32", batch_size=4)
results = lm_eval.simple_evaluate(
    model,
    tasks=tasks,
    num_fewshot=int(shots),
    task_manager=TaskManager(include_path=folder, include_defaults=False),
    bootstrap_iters=1000,
    log_samples=False,
    verbosity="ERROR",
)["results"]


def metrics(found):
    names = [key[: -len(",none")] for key in found if key.endswith(",none") and "_stderr" not in key]
    number = lambda value: value if isinstance(value, (int, float)) else None
    return {name: [found[f"{name},none"], number(found.get(f"{name}_stderr,none"))] for name in names}


print("\n" + json.dumps({task: metrics(results[task]) for task in tasks}))
