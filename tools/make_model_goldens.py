#!/usr/bin/env python3
"""Makes tests/golden/models: tiny random models of every architecture, and the logits Hugging Face transformers gives.

    tools/make_model_goldens.py [--check] [NAME ...]

Each row of MODELS below is the config.json of one folder, written as checkpoints of that family have it (most in the form
of transformers 4, some in that of transformers 5), and a list of its features, each with the change of the config that
turns it off. A folder gets random weights, a prompt longer than every window, and reference.safetensors: input_ids [tokens]
(as float32) and logits [tokens, vocabulary], computed by transformers in float32 with eager attention from the folder as
written. The script refuses a model that would not notice a mistake: every feature turned off, and every tensor shifted by
one element, must move the logits by more than 1e-2 of their standard deviation; and one that would notice none but
rounding: float64 must agree to 1e-5 (4e-5 where transformers computes recurrences in float32 whatever it is given).

--check makes nothing: it computes the logits of the existing folders again and compares.
Needs torch, transformers, safetensors, numpy.
"""

import copy
import json
import logging
import pathlib
import re
import sys
import tempfile
import zlib

import numpy
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

FOLDER = pathlib.Path(__file__).resolve().parent.parent / "tests" / "golden" / "models"
STORED = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


def config(model_type, architecture, **fields):
    base = dict(architectures=[architecture], model_type=model_type, max_position_embeddings=128, rms_norm_eps=1e-5,
                bos_token_id=1, eos_token_id=2, pad_token_id=None, torch_dtype="bfloat16", hidden_act="silu",
                attention_dropout=0.0, initializer_range=0.02, use_cache=True, tie_word_embeddings=False)
    base.update(fields)
    return base


def sizes(width, feed_forward, layers, heads, key_value_heads, vocabulary):
    return dict(hidden_size=width, intermediate_size=feed_forward, num_hidden_layers=layers, num_attention_heads=heads,
                num_key_value_heads=key_value_heads, vocab_size=vocabulary)


def llama(*shape, **fields):
    return config("llama", "LlamaForCausalLM", **sizes(*shape), **fields)


def mistral(*shape, **fields):
    return config("mistral", "MistralForCausalLM", **sizes(*shape), **fields)


def qwen2(*shape, **fields):
    return config("qwen2", "Qwen2ForCausalLM", **sizes(*shape), **fields)


def qwen3(*shape, **fields):
    return config("qwen3", "Qwen3ForCausalLM", **sizes(*shape), **{"attention_bias": False, **fields})


def gemma(version, *shape, **fields):
    kind, architecture = {1: ("gemma", "GemmaForCausalLM"), 2: ("gemma2", "Gemma2ForCausalLM"),
                          3: ("gemma3_text", "Gemma3ForCausalLM")}[version]
    made = config(kind, architecture, **sizes(*shape), **{"hidden_activation": "gelu_pytorch_tanh", **fields})
    if version > 1:
        del made["hidden_act"]
    return made


def phi3(*shape, **fields):
    return config("phi3", "Phi3ForCausalLM", **sizes(*shape), **fields)


def smollm3(*shape, **fields):
    return config("smollm3", "SmolLM3ForCausalLM", **sizes(*shape), **fields)


def qwen3_next(*shape, **fields):
    return config("qwen3_next", "Qwen3NextForCausalLM", **sizes(*shape), **{"decoder_sparse_step": 1, "mlp_only_layers": [],
                                                                        **fields})


def xlstm(*shape, **fields):
    made = config("xlstm", "xLSTMForCausalLM", **sizes(*shape), **{"use_bias": False, "weight_mode": "single", **fields})
    for name in ("rms_norm_eps", "intermediate_size", "num_attention_heads", "num_key_value_heads", "hidden_act"):
        del made[name]
    return made


def kimi(*shape, **fields):
    return config("kimi_linear", "KimiLinearForCausalLM", **sizes(*shape), **fields)


def minimax(*shape, **fields):
    return config("minimax", "MiniMaxForCausalLM", **sizes(*shape), **fields)


def qwen2_moe(*shape, **fields):
    return config("qwen2_moe", "Qwen2MoeForCausalLM", **sizes(*shape), **fields)


def dots1(*shape, **fields):
    return config("dots1", "Dots1ForCausalLM", **sizes(*shape), **{"attention_bias": False, **fields})


def qwen3_moe(*shape, **fields):
    return config("qwen3_moe", "Qwen3MoeForCausalLM", **sizes(*shape), **{"attention_bias": False, **fields})


def lfm2(*shape, **fields):
    made = config("lfm2", "Lfm2ForCausalLM", **sizes(*shape), **fields)
    for name in ("rms_norm_eps", "hidden_act"):
        del made[name]
    return made


def mamba(version, width, layers, vocabulary, **fields):
    kind, architecture = {1: ("mamba", "MambaForCausalLM"), 2: ("mamba2", "Mamba2ForCausalLM"),
                          "falcon": ("falcon_mamba", "FalconMambaForCausalLM")}[version]
    return dict(architectures=[architecture], model_type=kind, bos_token_id=0, eos_token_id=0, pad_token_id=0, hidden_act="silu",
                initializer_range=0.1, rescale_prenorm_residual=False, residual_in_fp32=True, torch_dtype="bfloat16",
                use_cache=True, hidden_size=width, intermediate_size=2 * width, num_hidden_layers=layers, vocab_size=vocabulary,
                time_step_min=0.001, time_step_max=0.1, time_step_floor=0.0001,
                **{"layer_norm_epsilon": 1e-5, "expand": 2, "conv_kernel": 4, "state_size": 16, "use_bias": False,
                   "use_conv_bias": True, **fields})


def hybrid(kind, architecture, shape, **fields):
    """shape: as of a transformer; the fields of the mixer as these families call them."""
    made = config(kind, architecture, **sizes(*shape), mamba_chunk_size=16, mamba_conv_bias=True, mamba_d_conv=4,
                  mamba_proj_bias=False, attention_bias=False, rope_scaling=None, **fields)
    return {**made, "mamba_expand": 2}


SHORT = [1.0, 1.1, 1.25, 1.4, 1.8, 2.2, 2.5, 3.0]
LONG = [1.0, 1.5, 2.0, 3.0, 4.5, 6.0, 8.0, 12.0]
YARN = dict(factor=4.0, original_max_position_embeddings=512)
EXTENDED = dict(max_position_embeddings=2048)

# name: (config, tokens of the prompt, {feature: fields that turn it off}); a field given as None is left out of the config.
# A row may end with options: stored (the type of the weights), shards (number of files), extra (tensors of no consequence),
# nested (as the text part of a model of text and images), names (parts of names as checkpoints have them, where transformers
# renames them), separate (experts one by one).
MODELS = {
    # Llama 2: as many key-value heads as heads, default rotary base, nothing optional; tables as old files store.
    "llama-2": (llama(48, 75, 2, 3, 3, 203), 49, {},
                dict(extra={f"model.layers.{i}.self_attn.rotary_emb.inv_freq": [8] for i in range(2)})),
    # Llama 3.2: low, middle and high frequencies are scaled differently.
    "llama-3": (
        llama(40, 39, 2, 4, 2, 131, head_dim=32, rope_theta=5000.0, tie_word_embeddings=True, max_position_embeddings=384,
              rope_scaling=dict(rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
                                original_max_position_embeddings=48)),
        60, {"scaling": dict(rope_scaling=None), "low": dict(rope_scaling=dict(low_freq_factor=0.5)),
             "high": dict(rope_scaling=dict(high_freq_factor=8.0)), "base": dict(rope_theta=500.0),
             "factor": dict(rope_scaling=dict(factor=4.0)),
             "original": dict(rope_scaling=dict(original_max_position_embeddings=128))}),
    # Linear scaling in its oldest spelling, one key-value head, large epsilon, float32 weights.
    "llama-linear": (
        llama(32, 50, 2, 4, 1, 140, rms_norm_eps=0.05, torch_dtype="float32", rope_scaling=dict(type="linear", factor=4.0)),
        48, {"scaling": dict(rope_scaling=None), "epsilon": dict(rms_norm_eps=1e-5)}, dict(stored="float32")),
    # YaRN with all that it lets one say, in the form of transformers 5.
    "llama-yarn": (
        llama(40, 61, 2, 5, 5, 133, head_dim=16, **EXTENDED,
              rope_parameters=dict(rope_type="yarn", rope_theta=3000.0, attention_factor=1.3, beta_fast=16.0, beta_slow=2.0,
                                   truncate=False, **YARN)),
        64, {"attention factor": dict(rope_parameters=dict(attention_factor=None)),
             "truncate": dict(rope_parameters=dict(truncate=True)),
             "betas": dict(rope_parameters=dict(beta_fast=None, beta_slow=None)),
             "factor": dict(rope_parameters=dict(factor=2.0))}),
    # Projections of attention with biases; a base in the form of transformers 5; float16 weights.
    "llama-bias": (
        llama(32, 48, 2, 2, 1, 201, attention_bias=True, rope_parameters=dict(rope_type="default", rope_theta=700.0)),
        48, {"base": dict(rope_parameters=dict(rope_theta=10000.0))}, dict(stored="float16")),
    # SmolLM: llama by name, tied, three heads a key-value head.
    "smollm": (llama(48, 45, 3, 6, 2, 135, tie_word_embeddings=True, rope_theta=10000.0, rope_scaling=None), 49, {}),
    # Mistral: every layer slides, heads wider than width / heads.
    "mistral-window": (
        mistral(40, 35, 2, 4, 2, 129, head_dim=32, sliding_window=17, rope_theta=10000.0),
        56, {"window": dict(sliding_window=64), "window + 1": dict(sliding_window=18),
             "window - 1": dict(sliding_window=16)}),
    "mistral-full": (
        mistral(32, 52, 3, 4, 1, 137, head_dim=16, sliding_window=None, rope_theta=1e6, tie_word_embeddings=True),
        48, {"base": dict(rope_theta=10000.0)}),
    # Qwen2: biases of queries, keys and values.
    "qwen2": (
        qwen2(48, 70, 2, 3, 3, 131, rope_theta=1e6, tie_word_embeddings=True, use_sliding_window=False, sliding_window=16,
              max_window_layers=1),
        48, {"window unused": dict(use_sliding_window=True)}),
    "qwen2-window": (
        qwen2(32, 53, 4, 4, 2, 134, rope_theta=1e6, use_sliding_window=True, sliding_window=13, max_window_layers=2),
        53, {"window": dict(use_sliding_window=False), "first layers": dict(max_window_layers=0),
             "last layers": dict(max_window_layers=3)}, dict(shards=3)),
    "qwen2-yarn": (
        qwen2(64, 23, 2, 2, 1, 132, rope_theta=10000.0, use_sliding_window=False, sliding_window=None,
              rope_scaling=dict(type="yarn", **YARN), **EXTENDED),
        56, {"scaling": dict(rope_scaling=None), "truncate": dict(rope_scaling=dict(truncate=False)),
             "attention factor": dict(rope_scaling=dict(attention_factor=1.0))}),
    # Qwen3: norms of queries and keys, heads wider than width / heads.
    "qwen3": (
        qwen3(40, 66, 2, 4, 2, 141, head_dim=32, rope_theta=1e6, tie_word_embeddings=True, use_sliding_window=False,
              sliding_window=None, max_window_layers=3, rope_scaling=None),
        51, {"base": dict(rope_theta=10000.0)}),
    "qwen3-yarn": (
        qwen3(32, 35, 2, 2, 1, 130, head_dim=96, rms_norm_eps=0.02, rope_theta=10000.0, use_sliding_window=False,
              rope_scaling=dict(rope_type="yarn", beta_fast=8.0, mscale=1.5, mscale_all_dim=0.5, **YARN), **EXTENDED),
        64, {"scaling": dict(rope_scaling=None), "beta": dict(rope_scaling=dict(beta_fast=None)),
             "mscale": dict(rope_scaling=dict(mscale=None)), "epsilon": dict(rms_norm_eps=1e-6)}),
    # Gemma: norms of 1 + w, scaled embeddings, GELU; the name of the activation as the first release had it.
    "gemma": (
        gemma(1, 40, 50, 2, 2, 1, 131, head_dim=64, tie_word_embeddings=True, hidden_act="gelu", hidden_activation=None,
              rope_theta=10000.0),
        48, {"activation": dict(hidden_act="silu")}),
    "gemma-full": (
        gemma(1, 40, 63, 2, 4, 4, 133, head_dim=16, rms_norm_eps=0.05, hidden_act="gelu_pytorch_tanh", rope_theta=2000.0),
        48, {"base": dict(rope_theta=10000.0), "epsilon": dict(rms_norm_eps=1e-6)}),
    # Gemma 2: soft caps, every other layer slides, scale of the scores that is not that of the heads.
    "gemma2": (
        gemma(2, 32, 55, 4, 4, 2, 136, head_dim=16, tie_word_embeddings=True, sliding_window=11, query_pre_attn_scalar=10,
              attn_logit_softcapping=3.0, final_logit_softcapping=4.0, rope_theta=10000.0),
        52, {"window": dict(sliding_window=64), "window + 1": dict(sliding_window=12),
             "score cap": dict(attn_logit_softcapping=None), "logit cap": dict(final_logit_softcapping=None),
             "scale": dict(query_pre_attn_scalar=16),
             "alternation": dict(layer_types=["full_attention", "sliding_attention"] * 2)}),
    "gemma2-uncapped": (
        gemma(2, 32, 49, 3, 4, 1, 131, head_dim=32, sliding_window=19, query_pre_attn_scalar=40,
              attn_logit_softcapping=None, final_logit_softcapping=None, rope_theta=10000.0),
        50, {"window": dict(sliding_window=64), "scale": dict(query_pre_attn_scalar=32),
             "score cap": dict(attn_logit_softcapping=3.0)}),
    # Gemma 3: norms of queries and keys, five sliding layers to a global one, two rotary bases, global layers scaled.
    "gemma3": (
        gemma(3, 32, 27, 7, 2, 1, 101, head_dim=32, tie_word_embeddings=True, sliding_window=9, sliding_window_pattern=6,
              query_pre_attn_scalar=20, rope_theta=1e6, rope_local_base_freq=500.0,
              rope_scaling=dict(rope_type="linear", factor=8.0)),
        52, {"window": dict(sliding_window=64), "window + 1": dict(sliding_window=10),
             "pattern": dict(sliding_window_pattern=7), "scaling": dict(rope_scaling=None),
             "local base": dict(rope_local_base_freq=None), "base": dict(rope_theta=500.0),
             "scale": dict(query_pre_attn_scalar=32)}),
    "gemma3-layers": (
        gemma(3, 32, 47, 4, 2, 2, 133, head_dim=16, sliding_window=14, query_pre_attn_scalar=16,
              layer_types=["full_attention", "sliding_attention", "sliding_attention", "full_attention"],
              rope_parameters=dict(full_attention=dict(rope_type="default", rope_theta=20000.0),
                                   sliding_attention=dict(rope_type="default", rope_theta=1000.0))),
        50, {"window": dict(sliding_window=64), "pattern": dict(layer_types=["sliding_attention"] * 3 + ["full_attention"]),
             "local base": dict(rope_parameters=dict(sliding_attention=None)),
             "base": dict(rope_parameters=dict(full_attention=None))}),
    # The same inside a model that also sees: a config of few words in text_config, tensors of other names beside.
    "gemma3-nested": (
        {key: value for key, value in gemma(3, 40, 34, 3, 2, 1, 129, head_dim=24, sliding_window=12, sliding_window_pattern=3,
                                            tie_word_embeddings=True).items()
         if key not in ("architectures", "torch_dtype", "rms_norm_eps", "hidden_activation", "max_position_embeddings",
                        "bos_token_id", "eos_token_id", "attention_dropout", "initializer_range", "use_cache")},
        48, {"window": dict(sliding_window=64), "pattern": dict(sliding_window_pattern=4),
             "local base": dict(rope_local_base_freq=1e6), "base": dict(rope_theta=10000.0),
             "scale": dict(query_pre_attn_scalar=24)},
        dict(nested=True, extra={"multi_modal_projector.mm_input_projection_weight": [8, 40]})),
    # Phi-3: fused projections, every layer slides.
    "phi3": (
        phi3(64, 29, 2, 2, 2, 132, sliding_window=23, rope_theta=10000.0, rope_scaling=None,
             original_max_position_embeddings=128),
        50, {"window": dict(sliding_window=None)}),
    # Prompt longer than the original context: the long factors count.
    "phi3-long": (
        phi3(64, 27, 2, 4, 2, 131, sliding_window=None, rope_theta=10000.0, original_max_position_embeddings=32,
             rope_scaling=dict(type="longrope", short_factor=SHORT, long_factor=LONG)),
        60, {"long": dict(rope_scaling=dict(long_factor=SHORT)), "attention factor": dict(max_position_embeddings=64),
             "original": dict(original_max_position_embeddings=100)}),
    # Phi-4-mini: the rest of a head is not rotated; the prompt stays inside the original context: the short factors count.
    "phi3-partial": (
        phi3(64, 47, 2, 2, 1, 133, sliding_window=64, rope_theta=10000.0, original_max_position_embeddings=64,
             partial_rotary_factor=0.5, tie_word_embeddings=True,
             rope_scaling=dict(type="su", short_factor=SHORT, long_factor=LONG, original_max_position_embeddings=64)),
        56, {"partial": dict(partial_rotary_factor=1.0,
                             rope_scaling=dict(short_factor=SHORT * 2, long_factor=LONG * 2)),
             "short": dict(rope_scaling=dict(short_factor=LONG))}),
    # SmolLM3: every fourth layer does not rotate.
    "smollm3": (
        smollm3(32, 50, 5, 4, 1, 131, tie_word_embeddings=True, rope_theta=2e6, no_rope_layers=[1, 1, 1, 0, 1],
                no_rope_layer_interval=4, use_sliding_window=False, sliding_window=None, mlp_bias=False,
                attention_bias=False),
        48, {"rotation": dict(no_rope_layers=[1] * 5), "base": dict(rope_theta=10000.0)}),
    "smollm3-layers": (
        smollm3(32, 42, 4, 2, 2, 134, rope_theta=50000.0, no_rope_layers=[0, 1, 1, 0], no_rope_layer_interval=4,
                use_sliding_window=False, sliding_window=None),
        48, {"rotation": dict(no_rope_layers=[1, 1, 1, 0])}),
    # LFM2: gated short convolutions, some layers attend; the feed-forward size is computed from another.
    "lfm2": (
        lfm2(48, 100, 5, 6, 3, 131, norm_eps=1e-5, tie_word_embeddings=True, conv_L_cache=3, conv_bias=False,
             block_multiple_of=24, block_ffn_dim_multiplier=1.1, block_auto_adjust_ff_dim=True,
             layer_types=["conv", "conv", "full_attention", "conv", "full_attention"], rope_theta=10000.0),
        57, {"base": dict(rope_theta=300.0)}),
    # All that a config may say, in older spellings: biases, five taps, the list of layers that attend.
    "lfm2-bias": (
        lfm2(32, 55, 4, 4, 4, 133, norm_eps=0.02, conv_L_cache=5, conv_bias=True, block_auto_adjust_ff_dim=False,
             full_attn_idxs=[1], rope_theta=1e6),
        50, {"base": dict(rope_theta=300.0), "epsilon": dict(norm_eps=1e-5)}),
    # Qwen2 with experts: a shared one behind a gate of its own.
    "qwen2moe": (
        qwen2_moe(32, 40, 3, 4, 4, 131, rope_theta=10000.0, moe_intermediate_size=16, num_experts=6, num_experts_per_tok=2,
                  norm_topk_prob=False, shared_expert_intermediate_size=29, decoder_sparse_step=1, mlp_only_layers=[0],
                  use_sliding_window=False),
        50, {"chosen": dict(num_experts_per_tok=3), "renormalised": dict(norm_topk_prob=True)}),
    # Sigmoid router with a bias of the choice alone, groups of experts, a scale, two shared experts as one.
    "dots1": (
        dots1(32, 40, 4, 4, 4, 133, rope_theta=10000.0, moe_intermediate_size=16, n_routed_experts=12, num_experts_per_tok=3,
              n_shared_experts=2, n_group=4, topk_group=2, norm_topk_prob=True, routed_scaling_factor=1.6,
              first_k_dense_replace=1, sliding_window=None, max_window_layers=4),
        50, {"groups": dict(n_group=1, topk_group=1), "groups chosen": dict(topk_group=3),
             "renormalised": dict(norm_topk_prob=False), "scale": dict(routed_scaling_factor=1.0),
             "chosen": dict(num_experts_per_tok=2)}, dict(separate=True)),
    # Qwen3 with experts: every second layer dense; the weights of the chosen ones add up to 1, or do not.
    "qwen3moe": (
        qwen3_moe(40, 52, 4, 4, 2, 133, head_dim=16, rope_theta=10000.0, moe_intermediate_size=24, num_experts=7,
                  num_experts_per_tok=3, norm_topk_prob=True, decoder_sparse_step=2, mlp_only_layers=[],
                  tie_word_embeddings=True),
        53, {"renormalised": dict(norm_topk_prob=False), "chosen": dict(num_experts_per_tok=2)}, dict(separate=True)),
    "qwen3moe-plain": (
        qwen3_moe(32, 41, 3, 4, 4, 131, head_dim=8, rope_theta=10000.0, moe_intermediate_size=17, num_experts=12,
                  num_experts_per_tok=2, norm_topk_prob=False, decoder_sparse_step=1, mlp_only_layers=[1]),
        50, {"renormalised": dict(norm_topk_prob=True), "chosen": dict(num_experts_per_tok=4)}),
    # Qwen3-Next: three gated delta nets to a layer of gated attention that rotates a quarter; experts beside a shared one.
    "qwen3next": (
        qwen3_next(40, 52, 4, 4, 2, 133, head_dim=16, rope_theta=10000.0, partial_rotary_factor=0.25,
                   linear_conv_kernel_dim=4, linear_key_head_dim=16, linear_value_head_dim=16, linear_num_key_heads=2,
                   linear_num_value_heads=4, moe_intermediate_size=24, shared_expert_intermediate_size=28, num_experts=7,
                   num_experts_per_tok=3, norm_topk_prob=True, full_attention_interval=4, rms_norm_eps=1e-6),
        70, {"chosen": dict(num_experts_per_tok=2), "renormalised": dict(norm_topk_prob=False),
             "partial": dict(partial_rotary_factor=0.5)}, dict(separate=True, rounding=4e-5)),
    # The list of layers, values of another size than keys, as many value heads as key heads, three taps.
    "qwen3next-layers": (
        qwen3_next(32, 44, 3, 2, 1, 131, head_dim=24, rope_theta=500.0,
                   rope_parameters=dict(rope_type="default", rope_theta=500.0, partial_rotary_factor=0.5),
                   linear_conv_kernel_dim=3, linear_key_head_dim=8, linear_value_head_dim=24, linear_num_key_heads=5,
                   linear_num_value_heads=5, moe_intermediate_size=16, shared_expert_intermediate_size=20, num_experts=5,
                   num_experts_per_tok=2, norm_topk_prob=False, rms_norm_eps=0.01,
                   layer_types=["full_attention", "linear_attention", "linear_attention"], tie_word_embeddings=True),
        74, {"renormalised": dict(norm_topk_prob=True), "epsilon": dict(rms_norm_eps=1e-6)}, dict(rounding=4e-5)),
    # MiniMax-01: lightning attention and one layer of softmax attention, each going on from what was normed; experts.
    "minimax": (
        minimax(40, 24, 4, 4, 2, 131, head_dim=16, rope_theta=10000.0, block_size=16, num_local_experts=5,
                num_experts_per_tok=2, full_attn_alpha_factor=0.8, full_attn_beta_factor=1.3, linear_attn_alpha_factor=1.4,
                linear_attn_beta_factor=0.7, mlp_alpha_factor=1.2, mlp_beta_factor=0.9,
                layer_types=["linear_attention", "linear_attention", "full_attention", "linear_attention"]),
        60, {"chosen": dict(num_experts_per_tok=3), "base": dict(rope_theta=500.0),
             "alpha": dict(linear_attn_alpha_factor=1.2), "beta": dict(full_attn_beta_factor=1.0)},
        dict(separate=True, names={"mlp.experts": "block_sparse_moe.experts", "mlp.gate": "block_sparse_moe.gate",
                                   "gate_proj": "w1", "down_proj": "w2", "up_proj": "w3"})),
    # Kimi Linear: delta nets with a decay a channel, one layer of latent attention, the first layer dense; the words of the
    # published config.
    "kimi-linear": (
        kimi(40, 44, 4, 2, 2, 131, qk_nope_head_dim=12, qk_rope_head_dim=8, v_head_dim=20, kv_lora_rank=24, q_lora_rank=None,
             linear_attn_config=dict(head_dim=16, num_heads=2, short_conv_kernel_size=4, full_attn_layers=[3],
                                     kda_layers=[1, 2, 4]),
             num_experts=6, num_experts_per_token=2, num_shared_experts=1, moe_intermediate_size=20,
             routed_scaling_factor=1.7, moe_renormalize=True, num_expert_group=2, topk_group=1, first_k_dense_replace=1,
             moe_router_activation_func="sigmoid"),
        64, {"chosen": dict(num_experts_per_token=3), "groups": dict(topk_group=2), "factor": dict(routed_scaling_factor=1.0)},
        dict(separate=True, rounding=4e-5, split={"self_attn.conv1d": ["self_attn.q_conv1d", "self_attn.k_conv1d",
                                                                       "self_attn.v_conv1d"]},
             names={r"mlp\.(experts|gate|shared_experts)\.": r"block_sparse_moe.\1.", r"self_attn\.forget_gate\.": "self_attn.",
                    r"(experts\.\d+)\.gate_proj": r"\1.w1", r"(experts\.\d+)\.down_proj": r"\1.w2",
                    r"(experts\.\d+)\.up_proj": r"\1.w3"})),
    # xLSTM: mLSTM cells with capped gates, logits capped.
    "xlstm": (
        xlstm(48, 0, 3, 2, 2, 131, num_heads=2, qk_dim_factor=0.5, v_dim_factor=1.0, ffn_proj_factor=1.5,
              ffn_round_up_to_multiple_of=16, gate_soft_cap=9.0, output_logit_soft_cap=6.0, norm_eps=1e-3, chunk_size=16, use_cache=False),
        58, {"gate cap": dict(gate_soft_cap=15.0), "logit cap": dict(output_logit_soft_cap=30.0),
             "epsilon": dict(norm_eps=1e-6)}),
    # Mamba: selective scan, tied; the config as converted checkpoints of the first release have it.
    "mamba": (
        mamba(1, 40, 3, 132, time_step_rank=3, time_step_scale=1.0, time_step_init_scheme="random", fused_add_norm=True,
              rms_norm=True, ssm_cfg={}, n_layer=3, d_model=40, pad_vocab_size_multiple=8, tie_word_embeddings=True),
        48, {}),
    # Biases where they are seldom, none where it is usual; untied; a rank that the width gives.
    "mamba-bias": (
        mamba(1, 40, 2, 133, use_bias=True, use_conv_bias=False, conv_kernel=3, state_size=12, time_step_rank="auto",
              layer_norm_epsilon=0.02, tie_word_embeddings=False),
        52, {"epsilon": dict(layer_norm_epsilon=1e-5)}),
    # Falcon-Mamba: step, B and C are normalised, with an epsilon of their own.
    "falcon-mamba": (
        mamba("falcon", 40, 3, 130, time_step_rank=4, mixer_rms_eps=0.05, tie_word_embeddings=False),
        48, {"mixer epsilon": dict(mixer_rms_eps=1e-6)}),
    # Mamba-2: scalar decay, groups of heads share B and C, gated norm by groups; infinity as Python writes it.
    "mamba2": (
        mamba(2, 32, 4, 131, num_heads=4, head_dim=16, n_groups=2, chunk_size=16, time_step_rank=8, norm_before_gate=True,
              rms_norm=True, time_step_limit=[0.0, float("inf")], tie_word_embeddings=False),
        50, {}),
    "mamba2-limit": (
        mamba(2, 40, 3, 132, num_heads=10, head_dim=8, n_groups=1, chunk_size=64, state_size=24, conv_kernel=2,
              use_bias=True, use_conv_bias=False, layer_norm_epsilon=0.03, time_step_limit=[0.08, 0.2],
              tie_word_embeddings=True),
        49, {"limit": dict(time_step_limit=None), "epsilon": dict(layer_norm_epsilon=1e-5)}),
    # Falcon-H1: attention and Mamba-2 side by side, multipliers everywhere, gate without norm.
    "falcon-h1": (
        hybrid("falcon_h1", "FalconH1ForCausalLM", (32, 40, 3, 3, 1, 131), head_dim=16, mamba_d_ssm=48, mamba_n_heads=6,
               mamba_d_head=8, mamba_n_groups=1, mamba_d_state=16, mamba_norm_before_gate=False, mamba_rms_norm=False,
               mamba_use_mlp=True, mlp_bias=False, projectors_bias=False, rope_theta=100000000000.0, num_logits_to_keep=1,
               attention_in_multiplier=0.8, attention_out_multiplier=0.9375, embedding_multiplier=1.4, key_multiplier=0.7,
               lm_head_multiplier=0.75, mlp_multipliers=[0.88, 0.65], ssm_in_multiplier=1.25, ssm_out_multiplier=0.6,
               ssm_multipliers=[0.7, 0.8, 1.3, 0.9, 0.6], attn_layer_indices=None, mlp_expansion_factor=8),
        48, {"base": dict(rope_theta=10000.0), "attention in": dict(attention_in_multiplier=1.0),
             "attention out": dict(attention_out_multiplier=1.0), "embedding": dict(embedding_multiplier=1.0),
             "key": dict(key_multiplier=1.0), "head": dict(lm_head_multiplier=1.0), "gate": dict(mlp_multipliers=[1.0, 0.65]),
             "down": dict(mlp_multipliers=[0.88, 1.0]), "in": dict(ssm_in_multiplier=1.0),
             "out": dict(ssm_out_multiplier=1.0), **{
                 f"part {i}": dict(ssm_multipliers=[0.7, 0.8, 1.3, 0.9, 0.6][:i] + [1.0] + [0.7, 0.8, 1.3, 0.9, 0.6][i + 1:])
                 for i in range(5)}}),
    # With norms by groups after the gate, tied, biases.
    "falcon-h1-norm": (
        hybrid("falcon_h1", "FalconH1ForCausalLM", (32, 40, 3, 2, 1, 133), head_dim=32, mamba_d_ssm=64, mamba_n_heads=4,
               mamba_d_head="auto", mamba_n_groups=2, mamba_d_state=16, mamba_norm_before_gate=False, mamba_rms_norm=True,
               mlp_bias=False, projectors_bias=True, rope_theta=10000.0, lm_head_multiplier=1.25,
               tie_word_embeddings=True),
        50, {"norm": dict(mamba_norm_before_gate=True), "head": dict(lm_head_multiplier=1.0)}),
    # The norm before the gate; Mamba as wide as `expand` says.
    "falcon-h1-before": (
        hybrid("falcon_h1", "FalconH1ForCausalLM", (32, 40, 3, 2, 2, 130), head_dim=16, mamba_d_ssm=None, mamba_n_heads=4,
               mamba_d_head=16, mamba_n_groups=1, mamba_d_state=24, mamba_norm_before_gate=True, mamba_rms_norm=True,
               projectors_bias=False, rope_theta=10000.0),
        50, {"norm": dict(mamba_norm_before_gate=False)}),
    # Bamba: Mamba-2 but for the layers listed, which rotate half a head.
    "bamba": (
        hybrid("bamba", "BambaForCausalLM", (32, 44, 4, 2, 1, 131), mamba_n_heads=8, mamba_d_head=8, mamba_n_groups=1,
               mamba_d_state=16, attn_layer_indices=[1, 3], attn_rotary_emb=8, mlp_bias=False, rope_theta=2000.0,
               num_logits_to_keep=1),
        50, {"base": dict(rope_theta=10000.0)}),
    # Granite 4: Mamba-2, attention without positions, experts beside a shared one, four multipliers.
    "granite-hybrid": (
        hybrid("granitemoehybrid", "GraniteMoeHybridForCausalLM", (32, 16, 3, 2, 1, 131), mamba_n_heads=4, mamba_d_head=16,
               mamba_n_groups=1, mamba_d_state=16, layer_types=["mamba", "attention", "mamba"], num_local_experts=4,
               num_experts_per_tok=2, shared_intermediate_size=24, position_embedding_type="nope", rope_theta=10000,
               attention_multiplier=0.15, embedding_multiplier=2, residual_multiplier=0.6, logits_scaling=0.8,
               normalization_function="rmsnorm", tie_word_embeddings=True),
        48, {"position": dict(position_embedding_type="rope"),
             "scale": dict(attention_multiplier=0.25), "embedding": dict(embedding_multiplier=1),
             "residual": dict(residual_multiplier=1), "logits": dict(logits_scaling=1),
             "experts": dict(num_experts_per_tok=1)},
        dict(names={"experts.gate_up_proj": "input_linear.weight", "experts.down_proj": "output_linear.weight",
                    "router.weight": "router.layer.weight"})),
    # Every layer attends: by GGUF's name another family, with experts or without; Granite 3.
    "granite-attention": (
        hybrid("granitemoehybrid", "GraniteMoeHybridForCausalLM", (32, 16, 3, 4, 2, 131), mamba_n_heads=4, mamba_d_head=16,
               mamba_n_groups=1, mamba_d_state=16, layer_types=["attention"] * 3, num_local_experts=4,
               num_experts_per_tok=2, shared_intermediate_size=24, position_embedding_type="rope", rope_theta=2000,
               attention_multiplier=0.2, embedding_multiplier=2, residual_multiplier=0.6, logits_scaling=0.8),
        48, {"position": dict(position_embedding_type="nope"), "base": dict(rope_theta=10000)},
        dict(names={"experts.gate_up_proj": "input_linear.weight", "experts.down_proj": "output_linear.weight",
                    "router.weight": "router.layer.weight"})),
    "granite": (
        config("granite", "GraniteForCausalLM", **sizes(32, 56, 3, 4, 2, 133), attention_bias=False, mlp_bias=False,
               attention_multiplier=0.2, embedding_multiplier=2.5, residual_multiplier=0.5, logits_scaling=1.25,
               rope_theta=2000.0, tie_word_embeddings=True),
        48, {"base": dict(rope_theta=10000.0), "scale": dict(attention_multiplier=0.3),
             "residual": dict(residual_multiplier=1.0), "embedding": dict(embedding_multiplier=1.0),
             "logits": dict(logits_scaling=1.0)}),
    # Without experts, with positions; the names of transformers 5 for layers.
    "granite-hybrid-dense": (
        hybrid("granitemoehybrid", "GraniteMoeHybridForCausalLM", (32, 16, 4, 2, 2, 130), mamba_n_heads=8, mamba_d_head=8,
               mamba_n_groups=2, mamba_d_state=16,
               layer_types=["linear_attention", "linear_attention", "full_attention", "linear_attention"],
               num_local_experts=0, num_experts_per_tok=0, shared_intermediate_size=40, position_embedding_type="rope",
               rope_theta=1000.0, attention_multiplier=0.3, embedding_multiplier=1.5, residual_multiplier=0.7,
               logits_scaling=1.25),
        50, {"position": dict(position_embedding_type="nope"), "base": dict(rope_theta=10000.0)}),
}


def changed(base, change):
    """The config with fields replaced: dictionaries entry by entry, None leaving the field out."""
    made = copy.deepcopy(base)
    for name, value in change.items():
        if value is None:
            made.pop(name, None)
        elif isinstance(value, dict) and isinstance(made.get(name), dict):
            made[name] = changed(made[name], value)
        else:
            made[name] = value
    return made


def nested(fields, weights):
    """Config and tensors of a Gemma 3 that has the given one as its text part."""
    whole = dict(architectures=["Gemma3ForConditionalGeneration"], model_type="gemma3", torch_dtype=fields["torch_dtype"],
                 boi_token_index=1, eoi_token_index=2, image_token_index=3, mm_tokens_per_image=4, 
                 text_config={name: value for name, value in fields.items() if name != "torch_dtype"},
                 vision_config=dict(model_type="siglip_vision_model", hidden_size=8, intermediate_size=8, image_size=28,
                                    patch_size=14, num_attention_heads=1, num_hidden_layers=1))
    return whole, {"language_model." + name: value for name, value in weights.items()}


def separate(weights):
    """Experts one by one, as most checkpoints have them."""
    made = {}
    for name, value in weights.items():
        if not name.endswith(("experts.gate_up_proj", "experts.down_proj")):
            made[name] = value
            continue
        stem = name[:name.rindex(".")]
        for i, matrix in enumerate(value):
            parts = matrix.chunk(2) if name.endswith("gate_up_proj") else (matrix,)
            for part, kind in zip(parts, ("gate_proj", "up_proj") if len(parts) == 2 else ("down_proj",)):
                made[f"{stem}.{i}.{kind}.weight"] = part.contiguous()
    return made


def empty_model(fields, dtype=torch.float32):
    with tempfile.TemporaryDirectory() as folder:
        (pathlib.Path(folder) / "config.json").write_text(json.dumps(fields))
        read = AutoConfig.from_pretrained(folder)
    torch.set_default_dtype(dtype)  # rotary tables too
    try:
        return AutoModelForCausalLM.from_config(read, attn_implementation="eager", experts_implementation="eager", dtype=dtype).eval()
    finally:
        torch.set_default_dtype(torch.float32)


def random_weights(fields, random):
    """Of a scale that keeps activations near 1, scores near 2 and logits near 2."""
    width, plus_one, tied = fields["hidden_size"], fields["model_type"].startswith(("gemma", "qwen3_next")), fields["tie_word_embeddings"]
    weights = {}
    model = empty_model(fields)
    biases = [(name, value) for name, value in model.named_buffers() if name.endswith("e_score_correction_bias")]
    for name, parameter in list(model.named_parameters()) + biases:
        values = random.standard_normal(tuple(parameter.shape))
        if name.endswith("A_log"):
            values = values * 0.7 - 0.5
        elif name.endswith(("dt_bias", "dt_proj.bias")):
            values = values * 0.7 - 2
        elif name.endswith(".D"):
            values = values * 0.5 + 1
        elif "conv1d.weight" in name:
            values *= 1.2 * parameter.shape[-1]**-0.5
        elif "norm" in name:
            values = values * 0.3 + (0 if plus_one and not "linear_attn.norm" in name else 1) + (0.4 if "q_norm" in name or "k_norm" in name else 0)
        elif name.endswith("igate_preact.bias"):
            values = values * 2 - 4
        elif name.endswith("bias"):
            values *= 0.5
        elif "lm_head" in name or "embed" in name and (tied or plus_one):
            values *= 2 * width**-0.5
        elif "embed" not in name:
            gain = 1.5 if any(part in name for part in ("q_proj", "k_proj", "qkv_proj")) else 0.8 if "x_proj" in name else 1.2
            values *= gain * parameter.shape[-1]**-0.5
        weights[name] = torch.from_numpy(values).float()
    return weights


def logits_of(fields, weights, ids, dtype=torch.float32):
    model = empty_model(fields, dtype)
    missing, unexpected = model.load_state_dict({name: value.to(dtype) for name, value in weights.items()}, strict=False)
    computed = ("lm_head.", ".slope_rate", ".query_decay", ".key_decay", ".diagonal_decay")
    assert not unexpected and all(any(part in name for part in computed) for name in missing), (missing, unexpected)
    model.tie_weights()
    with torch.no_grad():
        return model(torch.tensor([ids])).logits[0]


def logits_of_folder(folder, ids):
    model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager", experts_implementation="eager",
                                                 dtype=torch.float32).eval()
    with torch.no_grad():
        return model(torch.tensor([ids])).logits[0]


def write_weights(folder, weights, shards):
    for old in folder.glob("model*"):
        old.unlink()
    names = list(weights)
    if shards == 1:
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
        return
    index = {"metadata": {"total_size": sum(value.nbytes for value in weights.values())}, "weight_map": {}}
    for shard in range(shards):
        file = f"model-{shard + 1:05}-of-{shards:05}.safetensors"
        part = names[shard * len(names) // shards:(shard + 1) * len(names) // shards]
        save_file({name: weights[name] for name in part}, folder / file, metadata={"format": "pt"})
        index["weight_map"].update({name: file for name in part})
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=1) + "\n")


def moved(a, b):
    """Root mean square difference in standard deviations of b."""
    return float((a.double() - b.double()).square().mean().sqrt() / b.double().std())


def make(name, fields, tokens, features, options=None):
    options = options or {}
    random = numpy.random.default_rng(zlib.crc32(name.encode()))
    stored = STORED[options.get("stored", "bfloat16")]
    fields = {**fields, "torch_dtype": options.get("stored", "bfloat16")}
    weights = {key: value.to(stored) for key, value in random_weights(fields, random).items()}
    ids = [int(id) for id in random.integers(0, fields["vocab_size"], tokens)]

    folder = FOLDER / name
    folder.mkdir(parents=True, exist_ok=True)
    written = nested(fields, weights) if options.get("nested") else (fields, weights)
    if options.get("separate"):
        written = written[0], separate(written[1])
    for whole, parts in options.get("split", {}).items():
        tensors = {}
        for key, value in written[1].items():
            pieces = value.chunk(len(parts)) if whole in key else [value]
            tensors.update({key.replace(whole, part): piece.contiguous()
                            for part, piece in zip(parts if whole in key else [whole], pieces)})
        written = written[0], tensors
    for new, old in options.get("names", {}).items():
        written = written[0], {re.sub(new, old, key): value for key, value in written[1].items()}
    extra = {key: torch.from_numpy(random.standard_normal(shape)).float() for key, shape in options.get("extra", {}).items()}
    (folder / "config.json").write_text(json.dumps(written[0], indent=1) + "\n")
    write_weights(folder, {**written[1], **extra}, options.get("shards", 1))
    logits = logits_of_folder(folder, ids)
    save_file({"input_ids": torch.tensor(ids).float(), "logits": logits.contiguous()}, folder / "reference.safetensors")

    assert torch.equal(logits, logits_of(fields, weights, ids)), name
    exact = float((logits_of(fields, weights, ids, torch.float64) - logits).abs().max() / logits.std())
    assert exact < options.get("rounding", 1e-5), f"{name}: float64 gives other logits by {exact:.1e}"
    assert 0.7 < logits.std() < 4, f"{name}: logits of {logits.std():.2f}"
    least = 9, ""
    for feature, change in features.items():
        least = min(least, (moved(logits_of(changed(fields, change), weights, ids), logits), feature))
    for key, value in weights.items():
        shifted = value.roll(1, dims=-1) if value.shape[-1] > 1 else value.flatten().roll(1).view(value.shape)
        least = min(least, (moved(logits_of(fields, {**weights, key: shifted}, ids), logits), key))
    assert least[0] > 1e-2, f"{name}: blind to {least[1]}: {least[0]:.1e}"
    size = sum(file.stat().st_size for file in folder.iterdir())
    print(f"{name:16} {size:7} bytes, {tokens} tokens, logits of {logits.std():.2f}, float64 within {exact:.0e}, "
          f"least sensitive to {least[1]}: {least[0]:.2f}")
    return size


def check(name, fields, tokens, features, options=None):
    reference = load_file(FOLDER / name / "reference.safetensors")
    logits = logits_of_folder(FOLDER / name, [int(id) for id in reference["input_ids"]])
    error = float((logits - reference["logits"]).abs().max() / reference["logits"].std())
    print(f"{name:16} {error:.1e}")
    assert error < 1e-5, name
    return 0


def main(arguments):
    logging.disable(logging.WARNING)
    transformers.logging.disable_progress_bar()
    torch.set_num_threads(1)
    work = check if "--check" in arguments else make
    names = [argument for argument in arguments if not argument.startswith("-")] or list(MODELS)
    total = sum(work(name, *MODELS[name]) for name in names)
    if work is make:
        print(f"{len(names)} models, {total} bytes")


if __name__ == "__main__":
    main(sys.argv[1:])
