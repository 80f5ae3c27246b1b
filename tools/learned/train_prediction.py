"""KV Prediction: nestling reads a prompt, and linear maps of its keys and values become fledgling's keys and values, so that
fledgling need not read the prompt. For layer j of fledgling
    key_j = rotate(norm(K_j a + b_j)),  value_j = V_j a + c_j,  a = (keys before rotation, values) of all layers of nestling.
Nestling and the maps are trained together on: the divergence of fledgling over predicted keys and values from fledgling over its
own, the divergence of nestling from fledgling, and the distance of predicted from true keys and values.

    train_prediction.py FLEDGLING.gguf NESTLING.safetensors TOKENIZER.json SAMPLED.npy REAL.npy HELD.npy OUT --seconds 400"""
import argparse
import pathlib
import time

import numpy
import torch
import torch._dynamo
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from torch import nn

import documents
import model as models
from train_nestling import Batches, Optimiser, divergence, evaluate

TAIL = 384  # tokens that fledgling reads itself


class Maps(nn.Module):
    def __init__(self, base, helper):
        super().__init__()
        rows, columns = base.key_value_heads * base.head, helper.layers * 2 * helper.key_value_heads * helper.head
        make = lambda: nn.ParameterList(nn.Parameter(torch.randn(rows, columns) * columns ** -0.5) for _ in range(base.layers))
        zeros = lambda: nn.ParameterList(nn.Parameter(torch.zeros(rows)) for _ in range(base.layers))
        self.key, self.value, self.key_bias, self.value_bias = make(), make(), zeros(), zeros()

    def forward(self, base, keys_values):
        """[(keys, values)] of the helper [batch, tokens, heads, head] -> the same of the base, keys before rotation."""
        a = torch.cat([t.flatten(2) for kv in keys_values for t in kv], -1)
        cut = lambda t: t.view(*t.shape[:2], -1, base.s.head)
        return [(models.norm(cut(F.linear(a, k, b)), l.key_norm, base.s.epsilon), cut(F.linear(a, v, c)))
                for k, v, b, c, l in zip(self.key, self.value, self.key_bias, self.value_bias, base.layers)]


class Mixed(Batches):
    real = 0.1

    def lengths(self):
        return [1024, 1024, 2048, 4096]


def continued(base, ids, first, keys_values):
    """Logits of ids[:, first:] over given keys and values of what is before."""
    tail = ids.shape[1] - first
    cosine, sine = models.angles(base.s, torch.arange(first, device=ids.device))
    mask = torch.ones(tail, ids.shape[1], dtype=torch.bool, device=ids.device).tril(first)
    group = base.s.heads // base.s.key_value_heads

    def attend(i, q, k, v):
        key, value = keys_values[i]
        rotated = models.rotate(key[:, :first].flatten(0, 1), cosine.repeat(len(ids), 1), sine.repeat(len(ids), 1)).view_as(key[:, :first])
        k, v = torch.cat((rotated.transpose(1, 2), k), 2), torch.cat((value[:, :first].transpose(1, 2), v), 2)
        return F.scaled_dot_product_attention(q, k.repeat_interleave(group, 1), v.repeat_interleave(group, 1), attn_mask=mask)

    return base.logits(base(ids[:, first:], first=first, attend=attend))


@torch.no_grad()
def measure(a, base, helper, maps, held, lengths, count):
    for m in base, helper:
        m.enter, m.leave = models.enter, models.leave
    device = base.output_norm.device
    facts = documents.Facts(Tokenizer.from_file(a.tokenizer), numpy.random.default_rng(21))
    rng = numpy.random.default_rng(22)
    for length in lengths:
        right, loss = [[], [], []], [[], [], []]
        for n in range(count):
            ids, mask, document = facts.document(held, length)
            start = int(rng.integers(len(held) - length))
            for ids, mask, first in (ids, mask, document), (held[start:start + length].astype(numpy.int64), None, length - TAIL):
                on, theirs = torch.from_numpy(ids)[None].to(device), []
                hidden = helper(on, keys_values=theirs)
                logits = [helper.logits(hidden)[0, first:], continued(base, on, first, maps(base, theirs))[0], base.logits(base(on))[0, first:]]
                for i, l in enumerate(logits):
                    if mask is None:
                        loss[i].append(F.cross_entropy(l[:-1].float(), on[0, first + 1:]).item())
                    else:
                        right[i] += documents.right(l.argmax(-1).cpu().numpy(), ids[first:], mask[first:])
        for i, name in enumerate(("nestling alone", "fledgling, predicted", "fledgling")):
            print(f"{length:5} tokens, {name:22} recall {numpy.mean(right[i]):.3f}, loss of the {TAIL} tokens after {numpy.mean(loss[i]):.4f}", flush=True)


def main():
    parser = argparse.ArgumentParser()
    for name in ("fledgling", "nestling", "tokenizer", "sampled", "real", "held", "out"):
        parser.add_argument(name)
    for name, value in ("seconds", 400), ("tokens", 65536), ("workers", 12), ("documents", 10):
        parser.add_argument("--" + name, type=int, default=value)
    parser.add_argument("--tiny", action="store_true")
    a = parser.parse_args()
    out, device, opened = pathlib.Path(a.out), "cuda" if torch.cuda.is_available() else "cpu", time.time()
    torch.manual_seed(1)
    base = models.load(a.fledgling).to(device, torch.bfloat16).eval().requires_grad_(False)
    helper, stored = models.Model(models.NESTLING), load_file(a.nestling)
    with torch.no_grad():
        for p, _, name in models.tensors(helper):
            p.copy_(stored[name])
    helper = helper.to(device, torch.bfloat16)
    maps = Maps(base.s, helper.s).to(device, torch.bfloat16)
    texts = numpy.load(a.sampled), numpy.load(a.real)
    held = numpy.load(a.held)
    compiled, fast = divergence, (models.enter, models.leave)
    if device == "cuda":
        torch._dynamo.config.suppress_errors = True
        compiled, fast = torch.compile(divergence, dynamic=False), tuple(torch.compile(f, dynamic=False) for f in fast)
    optimisers = Optimiser(helper), Optimiser(maps)
    clock = torch.zeros(1).share_memory_()
    batches = torch.utils.data.DataLoader(Mixed(a.tokenizer, texts, a.tokens, clock), batch_size=None, num_workers=a.workers,
                                          prefetch_factor=4 if a.workers else None, pin_memory=device == "cuda")
    began, seen, losses = time.time(), 0, []
    for step, (ids, mask) in enumerate(batches):
        passed = (time.time() - began) / (opened + a.seconds - began)
        if passed >= 1 or (a.tiny and step == 3):
            break
        ids, mask = ids.to(device, non_blocking=True), mask.to(device, non_blocking=True)
        first, truth, theirs = ids.shape[1] - TAIL, [], []
        helper.enter, helper.leave = base.enter, base.leave = fast
        with torch.no_grad():
            target = base.logits(base(ids, keys_values=truth))
        logits = helper.logits(helper(ids, keys_values=theirs))
        weight = F.pad(1.0 + 4.0 * mask[:, 1:], (0, 1))
        helping = compiled(logits.flatten(0, 1), target.flatten(0, 1), weight.flatten()) / weight.sum()
        predicted = maps(base, theirs)
        base.enter, base.leave = models.enter, models.leave
        after = continued(base, ids, first, predicted)
        late = weight[:, first:]
        based = divergence(after.flatten(0, 1), target[:, first:].flatten(0, 1), late.flatten()) / late.sum()
        distance = sum((k - tk).abs().float().mean() / tk.abs().float().mean() + (v - tv).abs().float().mean() / tv.abs().float().mean()
                       for (k, v), (tk, tv) in zip(predicted, truth)) / len(truth)
        (helping + based + distance).backward()
        rate = min(1, (step + 1) / 60) * min(1, (1 - passed) / 0.7)
        settled = min(1, max(0, (passed - 0.04) / 0.04))  # maps first: their noise would spoil nestling
        optimisers[0].step(0.006 * rate * settled, 1e-3 * rate * settled)
        optimisers[1].step(0.02 * rate, 1e-3 * rate)
        seen += ids.numel()
        losses.append(torch.stack((helping.detach(), based.detach(), distance.detach())))
        if step % 200 == 0 or a.tiny:
            l = torch.stack(losses[-50:]).mean(0).tolist()
            print(f"{time.time() - began:5.0f} s, step {step}, {seen / 1e6:.0f} M tokens, length {ids.shape[1]}: nestling {l[0]:.4f}, "
                  f"predicted {l[1]:.4f}, distance {l[2]:.4f}", flush=True)
        if step % 2000 == 1999:
            measure(a, base, helper, maps, held, [2048], 3)
    save_file({name: p.detach().contiguous().cpu() for p, _, name in models.tensors(helper)}, out / "nestling.safetensors")
    save_file({f"{n}.{i}": p.detach().contiguous().cpu() for n in ("key", "value", "key_bias", "value_bias") for i, p in enumerate(getattr(maps, n))},
              out / "maps.safetensors")
    if a.tiny:
        return measure(a, base, helper, maps, held, [1024], 1)
    measure(a, base, helper, maps, held, [1024, 2048, 4096, 8192], a.documents)
    evaluate(helper, base, a.tokenizer, held, [1024, 4096, 8192], a.documents)


if __name__ == "__main__":
    main()
