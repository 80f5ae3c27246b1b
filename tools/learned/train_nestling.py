"""Trains nestling, a small model that drafts for fledgling: text is sampled from fledgling, mixed with recall documents and
repetitions, and the small model learns fledgling's distribution of every next token (forward KL, answers weigh more).

    train_nestling.py FLEDGLING.gguf TOKENIZER.json REAL.npy HELD.npy OUT --seconds 540

REAL.npy, HELD.npy: uint16 token ids of texts to train on and of one to measure on. OUT gets nestling.safetensors and
sampled.npy."""
import argparse
import itertools
import math
import pathlib
import time

import numpy
import torch
import torch._dynamo
import torch.nn.functional as F
from tokenizers import Tokenizer

import documents
import model as models


# ---- text of the teacher's own ----

@torch.no_grad()
def sample(model, prompts, tokens):
    """prompts [batch, n] -> [batch, tokens], temperature 1."""
    s, device = model.s, prompts.device
    batch, start = prompts.shape
    cache = torch.zeros(s.layers, 2, batch, s.key_value_heads, tokens, s.head, device=device, dtype=model.output_norm.dtype)
    ids = torch.zeros(batch, tokens, dtype=torch.long, device=device)
    ids[:, :start] = prompts
    group = s.heads // s.key_value_heads
    at = 0
    while at < tokens - 1:
        n = start if at == 0 else 1

        def attend(i, q, k, v):
            cache[i, 0, :, :, at:at + n], cache[i, 1, :, :, at:at + n] = k, v
            if n > 1:
                return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
            keys, values = cache[i, 0, :, :, :at + 1], cache[i, 1, :, :, :at + 1]
            score = q.view(batch, s.key_value_heads, group, s.head) @ keys.transpose(-1, -2) / math.sqrt(s.head)
            return (score.float().softmax(-1).to(q.dtype) @ values).view(batch, s.heads, 1, s.head)

        hidden = model(ids[:, at:at + n], first=at, attend=attend)[:, -1]
        at += n
        noise = torch.empty(batch, s.vocabulary, device=device).exponential_()
        ids[:, at] = (model.logits(hidden).float().softmax(-1) / noise).argmax(-1)
    return ids


# ---- batches ----

class Batches(torch.utils.data.IterableDataset):
    """Each item: (ids [rows, length], mask of answers). The length follows the share of time that has passed."""

    real = 0.25

    def __init__(self, tokenizer_path, texts, tokens, clock):
        self.tokenizer_path, self.texts, self.tokens, self.clock = tokenizer_path, texts, tokens, clock

    def lengths(self):
        passed = self.clock.item()
        if passed < 0.30:
            return [512, 1024]
        if passed < 0.65:
            return [512, 1024, 2048, 4096]
        return [1024, 2048, 4096, 4096, 8192]

    def one(self, facts, rng, length):
        prose = self.texts[int(rng.random() < self.real)]
        kind = rng.random()
        if kind < 0.65:
            count = int(min(40, max(4, length // 100) + rng.integers(8)))
            return facts.document(prose, length, count, min(count, length // 50))[:2]
        start = int(rng.integers(len(prose) - length))
        ids = prose[start:start + length].astype(numpy.int64)
        if kind < 0.80:  # a repetition
            half = length // 2 - int(rng.integers(length // 4))
            ids = numpy.concatenate((ids[:length - half], ids[length - 2 * half:length - half]))
        return ids, numpy.zeros(length, bool)

    def __iter__(self):
        worker = torch.utils.data.get_worker_info()
        rng = numpy.random.default_rng(1000 + (worker.id if worker else 0))
        facts = documents.Facts(Tokenizer.from_file(self.tokenizer_path), rng)
        while True:
            length = int(rng.choice(self.lengths()))
            rows = [self.one(facts, rng, length) for _ in range(max(1, self.tokens // length))]
            yield torch.from_numpy(numpy.stack([r[0] for r in rows])), torch.from_numpy(numpy.stack([r[1] for r in rows]))


# ---- optimiser: momentum made orthogonal for matrices, Adam for the rest ----

def orthogonal(g):
    x = g.bfloat16()
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    tall = x.shape[-2] > x.shape[-1]
    x = x.mT if tall else x
    for _ in range(5):
        a = x @ x.mT
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
    return (x.mT if tall else x).float()


class Optimiser:
    """Keeps float32 masters of a bfloat16 model."""

    def __init__(self, model):
        named = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
        matrices = [p for n, p in named if p.ndim == 2 and "embedding" not in n]
        self.others = [p for n, p in named if p.ndim != 2 or "embedding" in n]
        shapes = sorted({tuple(p.shape) for p in matrices})
        self.groups = [[p for p in matrices if tuple(p.shape) == s] for s in shapes]
        self.masters = [torch.stack([p.detach().float() for p in g]) for g in self.groups]
        self.momenta = [torch.zeros_like(m) for m in self.masters]
        self.adam_masters = [p.detach().float().clone().requires_grad_() for p in self.others]
        self.adam = torch.optim.AdamW(self.adam_masters, lr=1, betas=(0.9, 0.95), weight_decay=0.0)
        self.parameters = [p for _, p in named]

    @torch.no_grad()
    def step(self, rate, adam_rate):
        for group, master, momentum in zip(self.groups, self.masters, self.momenta):
            g = torch.stack([p.grad.float() for p in group])
            momentum.mul_(0.95).add_(g)
            update = orthogonal(g + 0.95 * momentum)
            master.mul_(1 - 0.01 * rate).add_(update, alpha=-rate * max(1, master.shape[-2] / master.shape[-1]) ** 0.5)
            for p, m in zip(group, master):
                p.copy_(m)
        for p, m in zip(self.others, self.adam_masters):
            m.grad = p.grad.float()
        torch.nn.utils.clip_grad_norm_(self.adam_masters, 1.0)
        self.adam.param_groups[0]["lr"] = adam_rate
        self.adam.step()
        for p, m in zip(self.others, self.adam_masters):
            p.copy_(m)
        for p in self.parameters:
            p.grad = None


def divergence(student, teacher, weight):
    """Sum over rows of weight KL(teacher || student)."""
    a, b = student.float().log_softmax(-1), teacher.float().log_softmax(-1)
    return ((b.exp() * (b - a)).sum(-1) * weight).sum()


# ---- measuring ----

@torch.no_grad()
def evaluate(student, teacher, tokenizer_path, held, tokens, count=10):
    device = student.output_norm.device
    fast = student.enter, student.leave
    for m in student, teacher:  # shapes of its own: not compiled
        m.enter, m.leave = models.enter, models.leave
    rng = numpy.random.default_rng(7)
    facts = documents.Facts(Tokenizer.from_file(tokenizer_path), rng)
    for length in tokens:
        right = {"student": [], "teacher": []}
        for _ in range(count):
            ids, mask, _ = facts.document(held, length)
            on = torch.from_numpy(ids)[None].to(device)
            for name, m in ("student", student), ("teacher", teacher):
                right[name] += documents.right(m.logits(m(on)[0]).argmax(-1).cpu().numpy(), ids, mask)
        print(f"recall at {length}: nestling {numpy.mean(right['student']):.3f}, fledgling {numpy.mean(right['teacher']):.3f} "
              f"({len(right['student'])} questions)", flush=True)
    rows = torch.from_numpy(held[:len(held) // 1024 * 1024].astype(numpy.int64)).view(-1, 1024)[:count * 8].to(device)
    a, b = student.logits(student(rows[:, :-1])).float(), teacher.logits(teacher(rows[:, :-1])).float()
    target = rows[:, 1:].flatten()
    print(f"held-out text: loss of nestling {F.cross_entropy(a.flatten(0, 1), target):.4f}, of fledgling "
          f"{F.cross_entropy(b.flatten(0, 1), target):.4f}, KL {divergence(a, b, 1.0) / target.numel():.4f}, "
          f"same greedy token {(a.argmax(-1) == b.argmax(-1)).float().mean():.4f}", flush=True)
    for m in student, teacher:
        m.enter, m.leave = fast


def main():
    parser = argparse.ArgumentParser()
    for name in ("fledgling", "tokenizer", "real", "held", "out"):
        parser.add_argument(name)
    for name, value in ("seconds", 540), ("sample_rounds", 8), ("sample_batch", 2048), ("sample_tokens", 1024), ("tokens", 65536), \
            ("workers", 12), ("eval_documents", 10):
        parser.add_argument("--" + name.replace("_", "-"), type=int, default=value)
    parser.add_argument("--tiny", action="store_true", help="a few steps, for trying")
    a = parser.parse_args()
    opened = time.time()
    out, device = pathlib.Path(a.out), "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(1)
    torch.backends.cuda.matmul.allow_tf32 = True
    teacher = models.load(a.fledgling).to(device, torch.bfloat16).eval().requires_grad_(False)
    real, held = (numpy.load(p) for p in (a.real, a.held))

    rng = numpy.random.default_rng(3)
    rounds = []
    for _ in range(a.sample_rounds):
        starts = rng.integers(0, len(real) - 16, a.sample_batch)
        prompts = torch.from_numpy(numpy.stack([real[i:i + 12] for i in starts]).astype(numpy.int64)).to(device)
        rounds.append(sample(teacher, prompts, a.sample_tokens).to(torch.int32).cpu().numpy().astype(numpy.uint16).ravel())
        print(f"sampled {sum(map(len, rounds))} tokens in {time.time() - opened:.0f} s", flush=True)
        if time.time() - opened > 0.15 * a.seconds:
            break
    sampled = numpy.concatenate(rounds)
    numpy.save(out / "sampled.npy", sampled[:4 << 20])

    student = models.Model(models.NESTLING).to(device)
    with torch.no_grad():  # the teacher's embedding in its main directions
        e = teacher.embedding.float()
        u, scale, _ = torch.linalg.svd(e - e.mean(0), full_matrices=False)
        e = (u * scale)[:, :models.NESTLING.width]
        student.embedding.copy_(e * (0.02 / e.std()))
    student = student.to(torch.bfloat16)
    if device == "cuda":
        torch._dynamo.config.suppress_errors = True
        compiled, fast = torch.compile(divergence), (torch.compile(models.enter), torch.compile(models.leave))
    else:
        compiled, fast = divergence, (models.enter, models.leave)
    optimiser = Optimiser(student)
    clock = torch.zeros(1).share_memory_()
    batches = torch.utils.data.DataLoader(Batches(a.tokenizer, (sampled, real), a.tokens, clock), batch_size=None,
                                          num_workers=a.workers, prefetch_factor=4 if a.workers else None, pin_memory=device == "cuda")
    began, seen, losses = time.time(), 0, []
    for m in teacher, student:
        m.enter, m.leave = fast
    for step, (ids, mask) in enumerate(batches):
        passed = (time.time() - began) / (opened + a.seconds - began)
        if passed >= 1 or (a.tiny and step == 4):
            break
        clock[0] = passed
        ids, mask = ids.to(device, non_blocking=True), mask.to(device, non_blocking=True)
        with torch.no_grad():
            target = teacher.logits(teacher(ids)).flatten(0, 1)
        weight = F.pad(1.0 + 4.0 * mask[:, 1:], (0, 1)).flatten()  # the last token has no next
        logits = student.logits(student(ids)).flatten(0, 1)
        loss = compiled(logits, target, weight) / weight.sum()
        loss.backward()
        rate = min(1, (step + 1) / 60) * min(1, (1 - passed) / 0.6)
        optimiser.step(0.02 * rate, 3e-3 * rate)
        seen += ids.numel()
        losses.append(loss.detach())
        if step % 100 == 0 or a.tiny:
            print(f"{time.time() - began:5.0f} s, step {step}, {seen / 1e6:.0f} M tokens, length {ids.shape[1]}, "
                  f"loss {torch.stack(losses[-50:]).mean():.4f}", flush=True)
        if step % 1000 == 999:
            evaluate(student, teacher, a.tokenizer, held, [1024, 4096], 3)
    from safetensors.torch import save_file
    save_file({name: p.detach().contiguous().cpu() for p, _, name in models.tensors(student)}, out / "nestling.safetensors")
    evaluate(student, teacher, a.tokenizer, held, [1024] if a.tiny else [1024, 2048, 4096, 8192], a.eval_documents)


if __name__ == "__main__":
    main()
