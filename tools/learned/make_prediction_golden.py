"""Golden of KV Prediction: tokens, and fledgling's logits of the last two when all but the last 40 were predicted.

    make_prediction_golden.py FLEDGLING.gguf NESTLING.gguf NESTLING.predict.gguf TEXT TOKENIZER.json GOLDEN.gguf"""
import sys

import numpy
import torch
from tokenizers import Tokenizer

import gguf
import model as models
from train_prediction import Maps, continued

torch.set_grad_enabled(False)
base, helper = models.load(sys.argv[1]), models.load(sys.argv[2], models.NESTLING)
maps, file = Maps(base.s, helper.s), gguf.Reader(sys.argv[3])
half = base.s.key_value_heads * base.s.head
for i in range(base.s.layers):
    weight, bias = (torch.from_numpy(file.tensor(f"kvp.blk.{i}.{n}")) for n in ("weight", "bias"))
    maps.key[i].copy_(weight[:half]), maps.value[i].copy_(weight[half:])
    maps.key_bias[i].copy_(bias[:half]), maps.value_bias[i].copy_(bias[half:])
ids = Tokenizer.from_file(sys.argv[5]).encode(open(sys.argv[4]).read()).ids[:300]
on, theirs = torch.tensor(ids)[None], []
helper(on, keys_values=theirs)
logits = continued(base, on, len(ids) - 40, maps(base, theirs))[0, -2:]
gguf.write(sys.argv[6], {"general.architecture": "golden"}, {"ids": numpy.array(ids, numpy.float32), "logits": logits.numpy()})
