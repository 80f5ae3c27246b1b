"""One of the gates of gates.safetensors (train_gate.py) as the GGUF file that lies beside fledgling's, and a golden for the test:
inputs of two layers and what the gate gives for them.

    save_gate.py FLEDGLING.gguf gates.safetensors open MODEL.gate.gguf GOLDEN.gguf"""
import sys

import numpy
import torch
from safetensors.torch import load_file

import gguf
import model as models
from train_gate import Gate

path, stored, name, file, golden = sys.argv[1:]
gate = Gate(models.FLEDGLING)
gate.load_state_dict({k[len(name) + 1:]: v for k, v in load_file(stored).items() if k.startswith(name + ".")})
half = lambda p: p.detach().to(torch.float16)
with torch.no_grad():
    gate.up.copy_(half(gate.up).float())

# By how much the loss of answers and of prose rises where one head sees 4 sinks and the last 256 tokens
# (measure_heads.py, 8192 tokens), layer by layer.
IMPORTANCE = [[0.0, 0.0034], [0.0, 0.0013], [0.0, 0.0], [0.0019, 0.0003], [0.0035, 0.0071], [3.0934, 0.0], [0.0036, 0.0117],
              [0.0264, 0.0031]]
# Of the tokens that gate `open` chooses from all heads together, 1/16 of 4096: each head's part, mean 1.
SHARE = [[0.632, 0.931], [0.0, 0.008], [0.0, 0.320], [0.013, 0.576], [0.156, 0.155], [7.086, 0.039], [1.009, 1.448],
         [2.971, 0.656]]
flat = lambda table: [x for row in table for x in row]
tensors = {}
for i in range(gate.up.shape[0]):
    for part, value in (("up.weight", half(gate.up[i])), ("up.bias", gate.up_bias[i]), ("down.weight", gate.down[i]),
                        ("down.bias", gate.down_bias[i])):
        tensors[f"blk.{i}.attn_keep_{part}"] = value.detach().numpy()
gguf.write(file, {"general.architecture": "linnet-gate", "general.name": "fledgling's gate",
                  "linnet.gate.share": flat(SHARE), "linnet.gate.importance": flat(IMPORTANCE)}, tensors)

rng = numpy.random.default_rng(5)
x = rng.standard_normal((40, gate.up.shape[2])).astype(numpy.float32)
with torch.no_grad():
    wanted = {f"score.{i}": gate.double()(i, torch.from_numpy(x).double()).float().numpy() for i in (0, 5)}
gguf.write(golden, {"general.architecture": "golden"}, {"h": x, **wanted})
