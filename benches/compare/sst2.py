"""Python's side of the SST-2 recipes: `transformers` and `peft`, at the same settings.

    sst2.py full|lora|head MODEL FOLDER [LEARNING-RATE [SEED [KEY=NUMBER…]]]

Keys are of the model's configuration. Prints the accuracy on the test rows and the seconds of training, evaluations aside.
"""

import json
import sys
import time
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForSequenceClassification, AutoTokenizer, get_linear_schedule_with_warmup

kind, path, folder = sys.argv[1:4]
learning_rate = float(sys.argv[4]) if len(sys.argv) > 4 else 5e-5
torch.manual_seed(int(sys.argv[5]) if len(sys.argv) > 5 else 1337)
tokenizer = AutoTokenizer.from_pretrained(path)
changes = {key: float(value) for key, value in (change.split("=") for change in sys.argv[6:])}
model = AutoModelForSequenceClassification.from_pretrained(path, num_labels=2, **changes)
if kind == "lora":
    config = LoraConfig(r=8, lora_alpha=16, lora_dropout=0.1, target_modules=["query", "value"], task_type="SEQ_CLS")
    model = get_peft_model(model, config)
elif kind == "head":
    for parameter in model.base_model.parameters():
        parameter.requires_grad = False


def rows(name):
    lines = (Path(folder) / f"{name}.tsv").read_text().splitlines()
    pairs = [line.rsplit("\t", 1) for line in lines]
    return [text for text, _ in pairs], torch.tensor([int(label) for _, label in pairs])


def encode(texts):
    return tokenizer(texts, padding=True, truncation=True, max_length=128, return_tensors="pt")


epochs, size = 3, 32
texts, labels = rows("train")
steps = epochs * -(-len(texts) // size)
learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
optimizer = torch.optim.AdamW(learning, lr=learning_rate, weight_decay=0.01)
schedule = get_linear_schedule_with_warmup(optimizer, steps // 10, steps)
model.train()
started = time.time()
for _ in range(epochs):
    order = torch.randperm(len(texts)).tolist()
    for first in range(0, len(order), size):
        chosen = order[first : first + size]
        batch = encode([texts[index] for index in chosen])
        loss = model(**batch, labels=labels[chosen]).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(learning, 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
seconds = time.time() - started

model.eval()
texts, labels = rows("test")
right = 0
with torch.no_grad():
    for first in range(0, len(texts), 64):
        logits = model(**encode(texts[first : first + 64])).logits
        right += (logits.argmax(-1) == labels[first : first + 64]).sum().item()
print(json.dumps({"kind": kind, "learning_rate": learning_rate, "test_accuracy": right / len(texts), "seconds": seconds}))
