"""A Qwen3 model in PyTorch with the places that training and measuring need: masks by head, keys and values of every
layer, the input of every attention."""
import math

import torch
import torch.nn.functional as F
from torch import nn

import gguf


class Shape:
    def __init__(self, layers=8, width=512, heads=8, key_value_heads=2, head=64, feed_forward=1280, vocabulary=8192,
                 rope_base=1e6, epsilon=1e-6):
        self.__dict__.update({k: v for k, v in locals().items() if k != "self"})


FLEDGLING = Shape()
NESTLING = Shape(layers=4, width=256, heads=4, key_value_heads=2, feed_forward=640)


def norm(x, weight, epsilon):
    y = x.float()
    y = y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + epsilon)
    return (y * weight.float()).to(x.dtype)


def rotate(x, cosine, sine):
    """x [tokens, heads, head], cosine and sine [tokens, head / 2]: halves rotate against one another."""
    half = x.shape[-1] // 2
    a, b, cosine, sine = x[..., :half].float(), x[..., half:].float(), cosine[:, None], sine[:, None]
    return torch.cat((a * cosine - b * sine, b * cosine + a * sine), -1).to(x.dtype)


def angles(shape, positions):
    inverse = shape.rope_base ** (-torch.arange(0, shape.head, 2, device=positions.device).double() / shape.head)
    angle = positions.double()[..., None] * inverse
    return angle.cos().float(), angle.sin().float()


# Both on rows [tokens of all sequences, ...]: of one shape in all of a training, so that they can be compiled once.

def enter(x, attention_norm, query, key, value, query_norm, key_norm, cosine, sine, epsilon, head):
    """The normalised input of attention; queries, keys, values [tokens, heads, head]; keys before rotation."""
    h = norm(x, attention_norm, epsilon)
    cut = lambda w: F.linear(h, w).view(x.shape[0], -1, head)
    q, k = norm(cut(query), query_norm, epsilon), norm(cut(key), key_norm, epsilon)
    return h, rotate(q, cosine, sine), rotate(k, cosine, sine), cut(value), k


def leave(x, mixed, output, feed_forward_norm, gate, up, down, epsilon):
    x = x + F.linear(mixed, output)
    h = norm(x, feed_forward_norm, epsilon)
    return x + F.linear(F.silu(F.linear(h, gate)) * F.linear(h, up), down)


class Layer(nn.Module):
    def __init__(self, s):
        super().__init__()
        matrix = lambda rows, columns: nn.Parameter(torch.randn(rows, columns) * 0.02)
        self.attention_norm = nn.Parameter(torch.ones(s.width))
        self.feed_forward_norm = nn.Parameter(torch.ones(s.width))
        self.query_norm = nn.Parameter(torch.ones(s.head))
        self.key_norm = nn.Parameter(torch.ones(s.head))
        self.query = matrix(s.heads * s.head, s.width)
        self.key = matrix(s.key_value_heads * s.head, s.width)
        self.value = matrix(s.key_value_heads * s.head, s.width)
        self.output = matrix(s.width, s.heads * s.head)
        self.gate = matrix(s.feed_forward, s.width)
        self.up = matrix(s.feed_forward, s.width)
        self.down = matrix(s.width, s.feed_forward)
        for w in self.output, self.down:
            w.data.mul_(1 / math.sqrt(2 * s.layers))


class Model(nn.Module):
    def __init__(self, shape):
        super().__init__()
        self.s = shape
        self.embedding = nn.Parameter(torch.randn(shape.vocabulary, shape.width) * 0.02)
        self.layers = nn.ModuleList(Layer(shape) for _ in range(shape.layers))
        self.output_norm = nn.Parameter(torch.ones(shape.width))
        self.enter, self.leave = enter, leave

    def forward(self, ids, first=0, attend=None, inputs=None, keys_values=None):
        """Hidden states [batch, tokens, width] before the head. attend(layer, q, k, v), all [batch, heads, tokens, head],
        replaces causal attention. inputs receives each layer's normalised input [batch, tokens, width]; keys_values its
        unrotated keys and values [batch, tokens, heads, head]."""
        s, (batch, tokens) = self.s, ids.shape
        x = F.embedding(ids.flatten(), self.embedding)
        cosine, sine = (t.repeat(batch, 1) for t in angles(s, torch.arange(first, first + tokens, device=ids.device)))
        heads = lambda t: t.view(batch, tokens, -1, s.head).transpose(1, 2)
        for i, l in enumerate(self.layers):
            h, q, k, v, raw = self.enter(x, l.attention_norm, l.query, l.key, l.value, l.query_norm, l.key_norm, cosine, sine,
                                         s.epsilon, s.head)
            if inputs is not None:
                inputs.append(h.view(batch, tokens, -1))
            if keys_values is not None:
                keys_values.append((raw.view(batch, tokens, -1, s.head), v.view(batch, tokens, -1, s.head)))
            if attend:
                mixed = attend(i, heads(q), heads(k), heads(v))
            else:
                mixed = F.scaled_dot_product_attention(heads(q), heads(k), heads(v), is_causal=True, enable_gqa=True)
            x = self.leave(x, mixed.transpose(1, 2).reshape(batch * tokens, -1), l.output, l.feed_forward_norm, l.gate, l.up,
                           l.down, s.epsilon)
        return norm(x, self.output_norm, s.epsilon).view(batch, tokens, -1)

    def logits(self, hidden):
        return hidden @ self.embedding.T


NAMES = [("attention_norm", "attn_norm", "input_layernorm"), ("feed_forward_norm", "ffn_norm", "post_attention_layernorm"),
         ("query_norm", "attn_q_norm", "self_attn.q_norm"), ("key_norm", "attn_k_norm", "self_attn.k_norm"),
         ("query", "attn_q", "self_attn.q_proj"), ("key", "attn_k", "self_attn.k_proj"), ("value", "attn_v", "self_attn.v_proj"),
         ("output", "attn_output", "self_attn.o_proj"), ("gate", "ffn_gate", "mlp.gate_proj"),
         ("up", "ffn_up", "mlp.up_proj"), ("down", "ffn_down", "mlp.down_proj")]


def tensors(model):
    """(parameter, name in GGUF, name of Hugging Face)."""
    yield model.embedding, "token_embd.weight", "model.embed_tokens.weight"
    yield model.output_norm, "output_norm.weight", "model.norm.weight"
    for i, layer in enumerate(model.layers):
        for own, short, long in NAMES:
            yield getattr(layer, own), f"blk.{i}.{short}.weight", f"model.layers.{i}.{long}.weight"


def load(path, shape=FLEDGLING):
    """From a GGUF file."""
    model, file = Model(shape), gguf.Reader(path)
    with torch.no_grad():
        for p, name, _ in tensors(model):
            p.copy_(torch.from_numpy(file.tensor(name)))
    return model
