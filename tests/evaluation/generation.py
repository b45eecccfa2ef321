"""BLEU and ROUGE of random texts by sacreBLEU and rouge_score.

Usage: generation.py.  Reads JSON {"texts": [...], "references": [[...], ...]}, one list of references for each
text, and prints JSON.
"""

import json
import sys

import sacrebleu
from rouge_score import rouge_scorer

given = json.load(sys.stdin)
texts, references = given["texts"], given["references"]
bleu = sacrebleu.corpus_bleu(texts, [list(column) for column in zip(*references)])
names = ["rouge1", "rouge2", "rougeL", "rougeLsum"]
scorer = rouge_scorer.RougeScorer(names)
scores = [scorer.score_multi(wanted, text) for text, wanted in zip(texts, references)]
mean = lambda name: [sum(score[name][part] for score in scores) / len(scores) for part in range(3)]
print(json.dumps({"bleu": bleu.score, "rouge": {name: mean(name) for name in names}}))
