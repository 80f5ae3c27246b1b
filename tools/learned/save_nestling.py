"""nestling.safetensors (train_nestling.py) as a Hugging Face folder, for `linnet convert`.

    save_nestling.py nestling.safetensors FLEDGLING_FOLDER FOLDER"""
import json
import pathlib
import shutil
import sys

import model as models

s, source, folder = models.NESTLING, pathlib.Path(sys.argv[2]), pathlib.Path(sys.argv[3])
folder.mkdir(parents=True, exist_ok=True)
config = json.loads((source / "config.json").read_text())
config.update(hidden_size=s.width, num_hidden_layers=s.layers, max_window_layers=s.layers, num_attention_heads=s.heads,
              num_key_value_heads=s.key_value_heads, head_dim=s.head, intermediate_size=s.feed_forward,
              layer_types=["full_attention"] * s.layers)
(folder / "config.json").write_text(json.dumps(config, indent=2))
for name in "tokenizer.json", "tokenizer_config.json", "generation_config.json":
    shutil.copy(source / name, folder / name)
shutil.copy(sys.argv[1], folder / "model.safetensors")
