"""maps.safetensors (train_prediction.py) as the GGUF file that lies beside nestling's.

    save_prediction.py maps.safetensors MODEL.predict.gguf"""
import sys

import torch
from safetensors.torch import load_file

import gguf

maps = {name: p.float() for name, p in load_file(sys.argv[1]).items()}
tensors = {}
for i in range(sum(name.startswith("key.") for name in maps)):
    tensors[f"kvp.blk.{i}.weight"] = gguf.Quantised(torch.cat((maps[f"key.{i}"], maps[f"value.{i}"])).numpy())
    tensors[f"kvp.blk.{i}.bias"] = torch.cat((maps[f"key_bias.{i}"], maps[f"value_bias.{i}"])).numpy()
gguf.write(sys.argv[2], {"general.architecture": "linnet-prediction", "general.name": "fledgling from nestling"}, tensors)
