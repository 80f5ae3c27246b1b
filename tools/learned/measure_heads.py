"""Which key-value heads of a model need memory: each in turn sees only sinks and recent tokens, recall and the loss of answers
are measured. Then heads are taken away one after the other, the least missed first.

    measure_heads.py MODEL.gguf TOKENIZER.json TEXT [--tokens 2048 --documents 3 --window 256 --sinks 4]"""
import argparse
import numpy
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer

import documents
import model as models


def windowed(model, reduced, window, sinks):
    """attend() where the (layer, head) pairs of `reduced` see only sinks and the last `window` tokens."""
    masks = {}

    def attend(i, q, k, v):
        heads = [h for h in range(model.s.key_value_heads) if (i, h) in reduced]
        if not heads:
            return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        tokens = q.shape[2]
        if tokens not in masks:
            row, column = torch.arange(tokens, device=q.device)[:, None], torch.arange(tokens, device=q.device)
            causal = column <= row
            masks[tokens] = causal, causal & ((column > row - window) | (column < sinks))
        group = q.shape[1] // k.shape[1]
        mask = torch.stack([masks[tokens][h in heads] for h in range(k.shape[1])]).repeat_interleave(group, 0)
        k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask[None])

    return attend


def measure(model, cases, attend):
    right, loss = [], []
    for ids, mask, _ in cases:
        hidden = model(torch.from_numpy(ids)[None].to(model.output_norm.device), attend=attend)[0]
        logits = model.logits(hidden[:-1]).float().cpu()
        right += documents.right(numpy.append(logits.argmax(-1).numpy(), 0), ids, mask)
        losses = F.cross_entropy(logits, torch.from_numpy(ids[1:]), reduction="none").numpy()
        loss.append((losses[mask[1:]].mean(), losses[~mask[1:]].mean()))
    return numpy.mean(right), *numpy.mean(loss, 0)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("model"), parser.add_argument("tokenizer"), parser.add_argument("text")
    for name, value in ("tokens", 2048), ("documents", 3), ("window", 256), ("sinks", 4), ("seed", 1):
        parser.add_argument("--" + name, type=int, default=value)
    a = parser.parse_args()
    torch.set_grad_enabled(False)
    model = models.load(a.model).eval()
    if torch.cuda.is_available():
        model = model.to("cuda", torch.bfloat16)
    tokenizer = Tokenizer.from_file(a.tokenizer)
    facts = documents.Facts(tokenizer, numpy.random.default_rng(a.seed))
    prose = numpy.load(a.text) if a.text.endswith(".npy") else numpy.array(tokenizer.encode(open(a.text).read()).ids)
    cases = [facts.document(prose, a.tokens) for _ in range(a.documents)]
    pairs = [(i, h) for i in range(model.s.layers) for h in range(model.s.key_value_heads)]
    show = lambda name, r: print(f"{name:28} recall {r[0]:.3f}  answer loss {r[1]:8.4f}  prose loss {r[2]:.4f}", flush=True)
    run = lambda reduced, window=a.window: measure(model, cases, windowed(model, set(reduced), window, a.sinks))
    show("all full", run([]))
    alone = {}
    for pair in pairs:
        alone[pair] = run([pair])
        show(f"windowed {pair}", alone[pair])
    show("all windowed", run(pairs))
    order = sorted(pairs, key=lambda p: alone[p][1])
    for count in range(2, len(pairs)):
        show(f"windowed the {count} least, {order[count - 1]}", run(order[:count]))
    for window in 16, 32, 64, 128, 512, 1024:
        for count in len(pairs) - 3, len(pairs) - 1:
            show(f"the {count} least in {window}", run(order[:count], window))


if __name__ == "__main__":
    main()
