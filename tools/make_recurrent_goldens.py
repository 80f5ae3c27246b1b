#!/usr/bin/env python3
"""Makes tests/golden/models of the recurrent families that transformers does not carry: RWKV-6, RWKV-7, GLA and RetNet.

    tools/make_recurrent_goldens.py [NAME ...]

The folders have the form of those that make_model_goldens.py writes, in the layout in which such checkpoints are published.
The reference is the recurrence written down token by token in float64, as the papers state it (RWKV-6: arXiv 2404.05892,
RWKV-7: arXiv 2503.14456, GLA: arXiv 2312.06635, RetNet: arXiv 2307.08621). As there, every tensor shifted by one element must move the logits by more than 1e-2 of their
standard deviation. Needs torch, safetensors, numpy.
"""

import json
import pathlib
import sys
import zlib

import numpy
import torch
from safetensors.torch import save_file
from torch.nn.functional import group_norm, layer_norm, normalize

FOLDER = pathlib.Path(__file__).resolve().parent.parent / "tests" / "golden" / "models"


def shifted(x):
    """Each token's predecessor; zeros before the first."""
    return torch.cat([torch.zeros_like(x[:1]), x[:-1]])


# ---- RWKV-6 ----

def rwkv6_config(width, heads, layers, feed_forward, vocabulary):
    return dict(architectures=["Rwkv6ForCausalLM"], model_type="rwkv6", hidden_size=width, attention_hidden_size=width,
                head_size=width // heads, head_size_divisor=8, intermediate_size=feed_forward, num_hidden_layers=layers,
                layer_norm_epsilon=1e-5, rescale_every=0, vocab_size=vocabulary, context_length=4096, bos_token_id=0,
                eos_token_id=0, tie_word_embeddings=False, torch_dtype="bfloat16", use_cache=True)


def rwkv6_shapes(c):
    width, feed_forward, heads = c["hidden_size"], c["intermediate_size"], c["hidden_size"] // c["head_size"]
    extra, decay = 32, 64
    yield "rwkv.embeddings.weight", (c["vocab_size"], width)
    for i in range(c["num_hidden_layers"]):
        block = f"rwkv.blocks.{i}."
        for norm in (["pre_ln"] if i == 0 else []) + ["ln1", "ln2", "attention.ln_x"]:
            yield block + norm + ".weight", (width,)
            yield block + norm + ".bias", (width,)
        for name in "xwkvrg":
            yield block + f"attention.time_maa_{name}", (1, 1, width)
        yield block + "attention.time_maa_w1", (width, 5 * extra)
        yield block + "attention.time_maa_w2", (5, extra, width)
        yield block + "attention.time_decay", (1, 1, width)
        yield block + "attention.time_decay_w1", (width, decay)
        yield block + "attention.time_decay_w2", (decay, width)
        yield block + "attention.time_faaaa", (heads, c["head_size"])
        for name in ("receptance", "key", "value", "gate", "output"):
            yield block + f"attention.{name}.weight", (width, width)
        yield block + "feed_forward.time_maa_k", (1, 1, width)
        yield block + "feed_forward.time_maa_r", (1, 1, width)
        yield block + "feed_forward.key.weight", (feed_forward, width)
        yield block + "feed_forward.receptance.weight", (width, width)
        yield block + "feed_forward.value.weight", (width, feed_forward)
    yield "rwkv.ln_out.weight", (width,)
    yield "rwkv.ln_out.bias", (width,)
    yield "head.weight", (c["vocab_size"], width)


def rwkv6_logits(c, w, ids):
    width, size = c["hidden_size"], c["head_size"]
    heads, tokens, epsilon = width // size, len(ids), c["layer_norm_epsilon"]

    def norm(x, name):
        return layer_norm(x, (width,), w[name + ".weight"], w[name + ".bias"], epsilon)

    x = norm(w["rwkv.embeddings.weight"][ids], "rwkv.blocks.0.pre_ln")
    for i in range(c["num_hidden_layers"]):
        a, f = f"rwkv.blocks.{i}.attention.", f"rwkv.blocks.{i}.feed_forward."
        h = norm(x, f"rwkv.blocks.{i}.ln1")
        change = shifted(h) - h
        low = torch.tanh((h + change * w[a + "time_maa_x"][0, 0]) @ w[a + "time_maa_w1"]).view(tokens, 5, -1)
        mixed = {}
        for j, name in enumerate("wkvrg"):
            mixed[name] = h + change * (w[a + f"time_maa_{name}"][0, 0] + low[:, j] @ w[a + "time_maa_w2"][j])
        r, k, v = (mixed[name] @ w[a + full + ".weight"].T
                   for name, full in (("r", "receptance"), ("k", "key"), ("v", "value")))
        g = torch.nn.functional.silu(mixed["g"] @ w[a + "gate.weight"].T)
        decay = w[a + "time_decay"][0, 0] + torch.tanh(mixed["w"] @ w[a + "time_decay_w1"]) @ w[a + "time_decay_w2"]
        decay = torch.exp(-torch.exp(decay))
        r, k, v, decay = (y.view(tokens, heads, size) for y in (r, k, v, decay))
        state, out = torch.zeros(heads, size, size, dtype=x.dtype), []
        for t in range(tokens):
            pair = k[t, :, :, None] * v[t, :, None, :]
            out.append(((state + w[a + "time_faaaa"][:, :, None] * pair) * r[t, :, :, None]).sum(1))
            state = decay[t, :, :, None] * state + pair
        out = torch.stack(out).view(tokens, width)
        out = group_norm(out, heads, w[a + "ln_x.weight"], w[a + "ln_x.bias"], 1e-5 * c["head_size_divisor"]**2)
        x = x + (out * g) @ w[a + "output.weight"].T
        h = norm(x, f"rwkv.blocks.{i}.ln2")
        change = shifted(h) - h
        k = torch.relu((h + change * w[f + "time_maa_k"][0, 0]) @ w[f + "key.weight"].T)**2
        r = torch.sigmoid((h + change * w[f + "time_maa_r"][0, 0]) @ w[f + "receptance.weight"].T)
        x = x + r * (k @ w[f + "value.weight"].T)
    return norm(x, "rwkv.ln_out") @ w["head.weight"].T


# ---- RWKV-7 ----

def rwkv7_config(width, heads, layers, feed_forward, vocabulary):
    return dict(architectures=["RWKV7ForCausalLM"], model_type="rwkv7", hidden_size=width, head_dim=width // heads,
                intermediate_size=feed_forward, num_hidden_layers=layers, decay_low_rank_dim=24, a_low_rank_dim=16,
                v_low_rank_dim=8, gate_low_rank_dim=40, norm_eps=6.4e-4 / (width // heads), norm_first=True, norm_bias=True,
                hidden_act="sqrelu", vocab_size=vocabulary, max_position_embeddings=2048, bos_token_id=1, eos_token_id=2,
                tie_word_embeddings=False, torch_dtype="bfloat16", use_cache=True, attn=None, fuse_norm=False)


def rwkv7_shapes(c):
    width, feed_forward, size = c["hidden_size"], c["intermediate_size"], c["head_dim"]
    ranks = {"w": c["decay_low_rank_dim"], "a": c["a_low_rank_dim"], "v": c["v_low_rank_dim"], "g": c["gate_low_rank_dim"]}
    yield "model.embeddings.weight", (c["vocab_size"], width)
    for i in range(c["num_hidden_layers"]):
        layer = f"model.layers.{i}."
        for norm in (["pre_norm"] if i == 0 else []) + ["attn_norm", "ffn_norm", "attn.g_norm"]:
            yield layer + norm + ".weight", (width,)
            yield layer + norm + ".bias", (width,)
        for name in "rwkvag":
            yield layer + f"attn.x_{name}", (1, 1, width)
        yield layer + "attn.k_k", (width,)
        yield layer + "attn.k_a", (width,)
        yield layer + "attn.r_k", (width // size, size)
        for name in ("r_proj", "k_proj", "v_proj", "o_proj"):
            yield layer + f"attn.{name}.weight", (width, width)
        for name, rank in ranks.items():
            if name == "v" and i == 0:
                continue
            yield layer + f"attn.{name}_lora.lora.0.weight", (rank, width)
            yield layer + f"attn.{name}_lora.lora.2.weight", (width, rank)
            if name != "g":
                yield layer + f"attn.{name}_lora.lora.2.bias", (width,)
        yield layer + "ffn.x_k", (width,)
        yield layer + "ffn.key.weight", (feed_forward, width)
        yield layer + "ffn.value.weight", (width, feed_forward)
    yield "model.norm.weight", (width,)
    yield "model.norm.bias", (width,)
    yield "lm_head.weight", (c["vocab_size"], width)


def rwkv7_logits(c, w, ids):
    width, size, epsilon = c["hidden_size"], c["head_dim"], c["norm_eps"]
    heads, tokens = width // size, len(ids)

    def norm(x, name):
        return layer_norm(x, (width,), w[name + ".weight"], w[name + ".bias"], epsilon)

    def low_rank(a, name, x, between):
        y = between(x @ w[a + f"{name}_lora.lora.0.weight"].T) @ w[a + f"{name}_lora.lora.2.weight"].T
        return y + w.get(a + f"{name}_lora.lora.2.bias", 0)

    x = norm(w["model.embeddings.weight"][ids], "model.layers.0.pre_norm")
    for i in range(c["num_hidden_layers"]):
        a, f = f"model.layers.{i}.attn.", f"model.layers.{i}.ffn."
        h = norm(x, f"model.layers.{i}.attn_norm")
        change = shifted(h) - h
        mixed = {name: h + change * w[a + f"x_{name}"][0, 0] for name in "rwkvag"}
        r, k, v = (mixed[name] @ w[a + f"{name}_proj.weight"].T for name in "rkv")
        decay = torch.exp(-numpy.exp(-0.5) * torch.sigmoid(low_rank(a, "w", mixed["w"], torch.tanh)))
        rate = torch.sigmoid(low_rank(a, "a", mixed["a"], lambda y: y))
        g = low_rank(a, "g", mixed["g"], torch.sigmoid)
        if i == 0:
            first = v
        else:
            v = v + (first - v) * torch.sigmoid(low_rank(a, "v", mixed["v"], lambda y: y))
        kk = normalize((k * w[a + "k_k"]).view(tokens, heads, size), dim=-1)
        k = k * (1 + (rate - 1) * w[a + "k_a"])
        r, k, v, decay, rate = (y.view(tokens, heads, size) for y in (r, k, v, decay, rate))
        state, out = torch.zeros(heads, size, size, dtype=x.dtype), []  # [key, value]
        for t in range(tokens):
            read = (kk[t, :, :, None] * state).sum(1)
            state = (decay[t, :, :, None] * state - (kk[t] * rate[t])[:, :, None] * read[:, None, :]
                     + k[t, :, :, None] * v[t, :, None, :])
            out.append((r[t, :, :, None] * state).sum(1))
        out = torch.stack(out).view(tokens, width)
        out = group_norm(out, heads, w[a + "g_norm.weight"], w[a + "g_norm.bias"], size * epsilon)
        out = out + ((r * k * w[a + "r_k"]).sum(-1, keepdim=True) * v).view(tokens, width)
        x = x + (out * g) @ w[a + "o_proj.weight"].T
        h = norm(x, f"model.layers.{i}.ffn_norm")
        k = torch.relu((h + (shifted(h) - h) * w[f + "x_k"]) @ w[f + "key.weight"].T)**2
        x = x + k @ w[f + "value.weight"].T
    return norm(x, "model.norm") @ w["lm_head.weight"].T


# ---- GLA and RetNet ----

def linear_config(kind, width, heads, layers, feed_forward, vocabulary, **fields):
    return dict(architectures=[{"gla": "GLAForCausalLM", "retnet": "RetNetForCausalLM"}[kind]], model_type=kind,
                hidden_size=width, num_heads=heads, num_kv_heads=None, num_hidden_layers=layers,
                intermediate_size=feed_forward, hidden_ratio=4, hidden_act="swish", norm_eps=1e-5, use_short_conv=False,
                use_output_gate=True, clamp_min=None, feature_map=None, attn=None, vocab_size=vocabulary,
                max_position_embeddings=2048, bos_token_id=1, eos_token_id=2, tie_word_embeddings=False,
                torch_dtype="bfloat16", use_cache=True, fuse_norm=True, **fields)


def linear_shapes(c):
    width, feed_forward = c["hidden_size"], c["intermediate_size"]
    keys, values = int(width * c["expand_k"]), int(width * c["expand_v"])
    yield "model.embeddings.weight", (c["vocab_size"], width)
    for i in range(c["num_hidden_layers"]):
        layer = f"model.layers.{i}."
        yield layer + "attn_norm.weight", (width,)
        for name, rows in (("q", keys), ("k", keys), ("v", values), ("g", values)):
            yield layer + f"attn.{name}_proj.weight", (rows, width)
        if c["model_type"] == "gla":
            yield layer + "attn.gk_proj.0.weight", (c["gate_low_rank_dim"], width)
            yield layer + "attn.gk_proj.1.weight", (keys, c["gate_low_rank_dim"])
            yield layer + "attn.gk_proj.1.bias", (keys,)
        yield layer + "attn.g_norm_swish_gate.weight", (values // c["num_heads"],)
        yield layer + "attn.o_proj.weight", (width, values)
        yield layer + "mlp_norm.weight", (width,)
        for name, shape in (("gate", (feed_forward, width)), ("up", (feed_forward, width)), ("down", (width, feed_forward))):
            yield layer + f"mlp.{name}_proj.weight", shape
    yield "model.norm.weight", (width,)
    yield "lm_head.weight", (c["vocab_size"], width)


def rotated(x):
    """[tokens, heads, size]: halves are pairs."""
    tokens, _, size = x.shape
    angle = torch.arange(tokens).double()[:, None] * 10000.0**(-torch.arange(0, size, 2).double() / size)
    cosine, sine = angle.cos()[:, None], angle.sin()[:, None]
    a, b = x.chunk(2, -1)
    return torch.cat([a * cosine - b * sine, b * cosine + a * sine], -1)


def linear_logits(c, w, ids):
    heads, tokens = c["num_heads"], len(ids)

    def norm(x, weight):
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + c["norm_eps"]) * weight

    x = w["model.embeddings.weight"][ids]
    for i in range(c["num_hidden_layers"]):
        a, m = f"model.layers.{i}.attn.", f"model.layers.{i}.mlp."
        h = norm(x, w[f"model.layers.{i}.attn_norm.weight"])
        q, k, v, g = ((h @ w[a + f"{name}_proj.weight"].T).view(tokens, heads, -1) for name in "qkvg")
        if c["model_type"] == "gla":
            low = (h @ w[a + "gk_proj.0.weight"].T) @ w[a + "gk_proj.1.weight"].T + w[a + "gk_proj.1.bias"]
            decay = torch.exp(torch.nn.functional.logsigmoid(low) / c["gate_logit_normalizer"]).view(tokens, heads, -1)
        else:
            q, k = rotated(q), rotated(k)
            decay = (1 - 2.0**(-5 - torch.arange(heads).double())).view(1, heads, 1).expand(tokens, heads, k.shape[-1])
        state, out = torch.zeros(heads, k.shape[-1], v.shape[-1], dtype=x.dtype), []
        for t in range(tokens):
            state = decay[t, :, :, None] * state + k[t, :, :, None] * v[t, :, None, :]
            out.append((q[t, :, :, None] * state).sum(1) * k.shape[-1]**-0.5)
        out = norm(torch.stack(out), w[a + "g_norm_swish_gate.weight"]) * torch.nn.functional.silu(g)
        x = x + out.reshape(tokens, -1) @ w[a + "o_proj.weight"].T
        h = norm(x, w[f"model.layers.{i}.mlp_norm.weight"])
        x = x + (torch.nn.functional.silu(h @ w[m + "gate_proj.weight"].T) * (h @ w[m + "up_proj.weight"].T)) @ w[m + "down_proj.weight"].T
    return norm(x, w["model.norm.weight"]) @ w["lm_head.weight"].T


# ---- making folders ----

MODELS = {
    "rwkv6": (rwkv6_config(64, 2, 2, 80, 97), rwkv6_shapes, rwkv6_logits, 44),
    "rwkv7": (rwkv7_config(64, 2, 3, 72, 101), rwkv7_shapes, rwkv7_logits, 41),
    "gla": (linear_config("gla", 48, 2, 3, 56, 103, expand_k=0.5, expand_v=1.0, gate_low_rank_dim=8, gate_logit_normalizer=4),
            linear_shapes, linear_logits, 52),
    "retnet": (linear_config("retnet", 32, 4, 3, 48, 99, expand_k=1.0, expand_v=2.0), linear_shapes, linear_logits, 47),
}


def random_value(name, shape, random):
    values = random.standard_normal(shape)
    if name.endswith("bias") and "lora" not in name:
        return values * 0.3
    if len(shape) == 1 and ("norm" in name or "ln" in name):
        return 1 + 0.3 * values
    if "time_decay" in name and shape[0] == 1:
        return values - 1.5
    if "time_maa" in name and shape[0] == 1 or ".x_" in name:
        return 0.5 + 0.5 * values
    if "embeddings" in name:
        return values
    if "time_maa_w2" in name:
        return values * shape[1]**-0.5
    if "_w1" in name or "_w2" in name:
        return values * shape[0]**-0.5
    if "w_lora" in name and len(shape) == 2:
        return values * 3 * shape[1]**-0.5
    if len(shape) == 2 and name.endswith("weight"):
        return values * (2 if name.split(".")[-2] in ("head", "lm_head") else 1.2) * shape[1]**-0.5
    return values


def moved(a, b):
    return float((a - b).square().mean().sqrt() / b.std())


def make(name):
    config, shapes, logits_of, tokens = MODELS[name]
    random = numpy.random.default_rng(zlib.crc32(name.encode()))
    weights = {key: torch.from_numpy(random_value(key, shape, random)).to(torch.bfloat16) for key, shape in shapes(config)}
    exact = {key: value.double() for key, value in weights.items()}
    ids = [int(id) for id in random.integers(0, config["vocab_size"], tokens)]
    logits = logits_of(config, exact, ids)
    folder = FOLDER / name
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    save_file({"input_ids": torch.tensor(ids).float(), "logits": logits.float().contiguous()}, folder / "reference.safetensors")
    assert 0.7 < logits.std() < 4, f"{name}: logits of {logits.std():.2f}"
    least = min((moved(logits_of(config, {**exact, key: value.roll(1, dims=-1)}, ids), logits), key)
                for key, value in exact.items())
    assert least[0] > 1e-2, f"{name}: blind to {least[1]}: {least[0]:.1e}"
    size = sum(file.stat().st_size for file in folder.iterdir())
    print(f"{name:16} {size:7} bytes, {tokens} tokens, logits of {logits.std():.2f}, "
          f"least sensitive to {least[1]}: {least[0]:.2f}")


if __name__ == "__main__":
    for model in sys.argv[1:] or MODELS:
        make(model)
