"""Trains gates for fledgling: from the input of a layer's attention, one number for each token and key-value head that says how
much the token will be needed later. The model stays as it is. Four gates are trained and compared with scores that need no
training, by recall when only the best tokens of each head are kept:
    asked     regression on the log of the most attention that questions after the text give to the token
    repeated  the same from a repetition of the text
    both      on both kinds of targets
    open      by the model's own loss with tokens hidden where the gate is shut (straight-through), and a term that
              pulls the share of open gates to `share`

    train_gate.py FLEDGLING.gguf TOKENIZER.json TEXT.npy HELD.npy OUT --seconds 60 --open-seconds 100"""
import argparse
import math
import pathlib
import time

import numpy
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch import nn

import documents
import model as models

SINKS, RECENT, TAIL, HIDDEN = 4, 128, 512, 64
FLOOR = math.log(1e-4)


class Gate(nn.Module):
    """score = down silu(up h + a) + b, for each layer."""

    def __init__(self, s):
        super().__init__()
        self.up = nn.Parameter(torch.randn(s.layers, HIDDEN, s.width) / math.sqrt(s.width))
        self.up_bias = nn.Parameter(torch.zeros(s.layers, HIDDEN))
        self.down = nn.Parameter(torch.randn(s.layers, s.key_value_heads, HIDDEN) / math.sqrt(HIDDEN))
        self.down_bias = nn.Parameter(torch.full((s.layers, s.key_value_heads), -6.0))

    def forward(self, i, h):
        """[..., width] -> [..., key-value heads]"""
        x = F.silu(h.to(self.up.dtype) @ self.up[i].T + self.up_bias[i])
        return x @ self.down[i].T + self.down_bias[i]


# ---- batches ----

class Batches(torch.utils.data.IterableDataset):
    """(ids, mask of answers, tokens of the document, repeated?)"""

    def __init__(self, tokenizer, text, tokens, lengths, repeat):
        self.tokenizer, self.text, self.tokens, self.lengths, self.repeat = tokenizer, text, tokens, lengths, repeat

    def __iter__(self):
        worker = torch.utils.data.get_worker_info()
        rng = numpy.random.default_rng(2000 + (worker.id if worker else 0))
        facts = documents.Facts(Tokenizer.from_file(self.tokenizer), rng)
        while True:
            length = int(rng.choice(self.lengths))
            rows, repeat = max(1, self.tokens // length), bool(rng.random() < self.repeat)
            made = []
            for _ in range(rows):
                if repeat:
                    ids, mask, _ = facts.document(self.text, length // 2, length // 200, 0, 0.3)
                    made.append((numpy.concatenate((ids, ids)), numpy.zeros(length, bool), length // 2))
                else:
                    made.append(facts.document(self.text, length, min(24, length // 100), min(24, length // 100), 0.3))
            yield (torch.from_numpy(numpy.stack([m[0] for m in made])), torch.from_numpy(numpy.stack([m[1] for m in made])),
                   torch.tensor([m[2] for m in made]), repeat)


def loader(a, text, tokens, lengths, repeat):
    return torch.utils.data.DataLoader(Batches(a.tokenizer, text, tokens, lengths, repeat), batch_size=None, num_workers=a.workers)


# ---- regression ----

@torch.no_grad()
def targets(model, ids, document, tail):
    """inputs of each layer, and for each the log of the most attention from the rows after the document, [batch, tokens, heads]."""
    inputs, logs = [], []
    tokens = ids.shape[1]
    row, column = torch.arange(tokens - tail, tokens, device=ids.device)[:, None], torch.arange(tokens, device=ids.device)
    hidden = (column > row)[None] | (row < document[:, None, None])

    def attend(i, q, k, v):
        group = q.shape[1] // k.shape[1]
        score = q[:, :, -tail:] @ k.repeat_interleave(group, 1).mT / math.sqrt(q.shape[-1])
        score = score.float().masked_fill((column > row)[None, None], -math.inf).softmax(-1).masked_fill(hidden[:, None], 0)
        most = score.amax(2).view(len(ids), -1, group, tokens).amax(2)
        logs.append(most.clamp_min(1e-12).log().clamp_min(FLOOR).mT)
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)

    model(ids, attend=attend, inputs=inputs)
    return inputs, logs


def regress(a, model, text, gates):
    device = model.output_norm.device
    parameters = [p for g in gates.values() for p in g.parameters()]
    optimiser = torch.optim.AdamW(parameters, lr=2e-3, weight_decay=0.01)
    began, seen = time.time(), 0
    for step, (ids, _, document, repeat) in enumerate(loader(a, text, a.tokens, a.lengths, 0.33)):
        passed = (time.time() - began) / a.seconds
        if passed >= 1 or (a.tiny and step == 3):
            break
        ids, document = ids.to(device), document.to(device)
        tail = ids.shape[1] // 2 if repeat else min(TAIL, ids.shape[1] // 2)
        inputs, logs = targets(model, ids, document, tail)
        column = torch.arange(ids.shape[1], device=device)
        counts = ((column < document[:, None] - RECENT) & (column >= SINKS)).float()[..., None]
        losses = {}
        for name, gate in gates.items():
            if name == ("asked" if repeat else "repeated"):
                continue
            losses[name] = sum((F.mse_loss(gate(i, h), y, reduction="none") * counts).sum() for i, (h, y) in enumerate(zip(inputs, logs)))
            losses[name] = losses[name] / (counts.sum() * len(inputs) * logs[0].shape[-1])
        optimiser.param_groups[0]["lr"] = 2e-3 * min(1, (step + 1) / 50) * (1 - passed)
        optimiser.zero_grad()
        sum(losses.values()).backward()
        optimiser.step()
        seen += ids.numel()
        if step % 200 < 2 or a.tiny:
            print(f"{time.time() - began:4.0f} s step {step} {seen / 1e6:.1f} M tokens", {n: round(l.item(), 3) for n, l in losses.items()}, flush=True)


# ---- straight through ----

def train_open(a, model, text, gate):
    device = model.output_norm.device
    optimiser = torch.optim.AdamW(gate.parameters(), lr=2e-3, weight_decay=0.0)
    with torch.no_grad():
        gate.down_bias.fill_(2.0)
    began = time.time()
    for step, (ids, mask, document, _) in enumerate(loader(a, text, a.open_tokens, a.open_lengths, 0.0)):
        passed = (time.time() - began) / a.open_seconds
        if passed >= 1 or (a.tiny and step == 3):
            break
        ids, mask = ids.to(device), mask.to(device)
        tokens = ids.shape[1]
        row, column = torch.arange(tokens, device=device)[:, None], torch.arange(tokens, device=device)
        causal = column <= row
        near = (causal & ((row - column < RECENT) | (column < SINKS))).to(torch.bfloat16)
        inputs, soft = [], []

        def attend(i, q, k, v):
            group = q.shape[1] // k.shape[1]
            g = gate(i, inputs[i]).sigmoid().mT  # [batch, heads, tokens]
            soft.append(g.mean())
            flag = ((g > 0.5).float() + g - g.detach()).to(q.dtype).repeat_interleave(group, 1)[:, :, None]
            seen = flag + near * (1 - flag)
            weight = (q @ k.repeat_interleave(group, 1).mT / math.sqrt(q.shape[-1])).float().masked_fill(~causal, -math.inf)
            weight = weight.softmax(-1).to(q.dtype) * seen
            weight = weight / (weight.sum(-1, keepdim=True) + 1e-6)
            return weight @ v.repeat_interleave(group, 1)

        with torch.no_grad():
            target = model.logits(model(ids)).float().log_softmax(-1)
        logits = model.logits(model(ids, attend=attend, inputs=inputs)).float().log_softmax(-1)
        weight = 1.0 + 20.0 * F.pad(mask[:, 1:], (0, 1))
        loss = (((target.exp() * (target - logits)).sum(-1)) * weight).sum() / weight.sum()
        share = torch.stack(soft).mean()
        pull = min(1.0, passed / 0.3) * 2.0
        optimiser.param_groups[0]["lr"] = 2e-3 * min(1, (step + 1) / 20, 2 * (1 - passed))
        optimiser.zero_grad()
        (loss + pull * (share - a.share).abs()).backward()
        torch.nn.utils.clip_grad_norm_(gate.parameters(), 1.0)
        optimiser.step()
        if step % 100 == 0 or a.tiny:
            print(f"{time.time() - began:4.0f} s step {step}: KL {loss.item():.4f}, open {share.item():.3f}", flush=True)


# ---- measuring ----

def pooled(x, width=7):
    return F.max_pool1d(x[None], width, 1, width // 2)[0]


class Case:
    """A document, what a full pass over it left, and what is asked of it."""

    @torch.no_grad()
    def __init__(self, model, ids, mask, document):
        self.ids, self.mask, self.document = ids, mask, document
        on = torch.from_numpy(ids)[None].to(model.output_norm.device)
        self.queries, self.keys, self.values, self.inputs = [], [], [], []

        def attend(i, q, k, v):
            self.queries.append(q[0]), self.keys.append(k[0]), self.values.append(v[0])
            return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)

        self.on = on
        self.logits = model.logits(model(on, attend=attend, inputs=self.inputs)[0, document:])

    def weights(self, first, last):
        """Attention of rows first .. last - 1, [layers] of [heads, group, rows, document]."""
        for q, k in zip(self.queries, self.keys):
            group, n = q.shape[0] // k.shape[0], self.document
            score = (q[:, first:last] @ k[:, :last].repeat_interleave(group, 0).mT / math.sqrt(q.shape[-1])).float()
            late = torch.arange(last, device=q.device) > torch.arange(first, last, device=q.device)[:, None]
            yield score.masked_fill(late, -math.inf).softmax(-1)[..., :n].view(k.shape[0], group, last - first, n)


def scores(case, gates):
    """name -> [layers, heads, tokens of the document]"""
    n = case.document
    keys = torch.stack(case.keys)[:, :, :n].float()
    direction = F.normalize(keys, dim=-1)
    table = {"random": torch.rand(keys.shape[:3], device=keys.device), "key norm": -keys.norm(dim=-1),
             "key difference": -(direction * F.normalize(direction.mean(2, keepdim=True), dim=-1)).sum(-1),
             "snapkv": torch.stack([pooled(w.sum(2).mean(1)) for w in case.weights(n - 32, n)]),
             "oracle": torch.stack([w.amax(2).amax(1) for w in case.weights(n, len(case.ids))])}
    for name, gate in gates.items():
        table["gate " + name] = torch.stack([gate(i, case.inputs[i][0, :n]).T for i in range(len(case.keys))])
    return table


def keep(score, budget, everywhere):
    """The best `budget` tokens of each head, or the best layers * heads * budget of all together."""
    if not everywhere:
        return torch.zeros_like(score, dtype=torch.bool).scatter_(2, score.topk(budget, -1).indices, True)
    flat = score.flatten()
    return torch.zeros_like(flat, dtype=torch.bool).scatter_(0, flat.topk(budget * score.shape[0] * score.shape[1]).indices, True).view(score.shape)


@torch.no_grad()
def ask(model, case, kept):
    """Logits of what follows the document when its rows see only what is kept of it."""
    n, tail = case.document, len(case.ids) - case.document
    kept = kept.clone()
    kept[:, :, :SINKS] = True
    kept[:, :, n - RECENT:] = True
    causal = torch.ones(tail, tail, dtype=torch.bool, device=kept.device).tril()

    def attend(i, q, k, v):
        group = q.shape[1] // k.shape[1]
        mask = torch.cat((kept[i][:, None].expand(-1, tail, -1), causal.expand(len(kept[i]), -1, -1)), -1).repeat_interleave(group, 0)
        k, v = torch.cat((case.keys[i][None, :, :n], k), 2), torch.cat((case.values[i][None, :, :n], v), 2)
        return F.scaled_dot_product_attention(q, k.repeat_interleave(group, 1), v.repeat_interleave(group, 1), attn_mask=mask[None])

    return model.logits(model(case.on[:, n:], first=n, attend=attend)[0])


@torch.no_grad()
def ask_live(model, case, gate, budget):
    """Tokens are dropped as soon as they leave the last RECENT, in the document too (the best `budget` of all of it)."""
    n, tokens = case.document, len(case.ids)
    row, column = torch.arange(tokens, device=case.on.device)[:, None], torch.arange(tokens, device=case.on.device)
    causal = column <= row
    near, inputs = causal & ((row - column < RECENT) | (column < SINKS) | (column >= n)), []

    def attend(i, q, k, v):
        group = q.shape[1] // k.shape[1]
        kept = keep(gate(i, inputs[i][0]).T[None, :, :n], budget, False)[0]
        kept = F.pad(kept, (0, tokens - n))[:, None]
        mask = (near | (causal & kept)).repeat_interleave(group, 0)
        return F.scaled_dot_product_attention(q, k.repeat_interleave(group, 1), v.repeat_interleave(group, 1), attn_mask=mask[None])

    return model.logits(model(case.on, attend=attend, inputs=inputs)[0, n:])


def answers(case, logits):
    ids, mask = case.ids[case.document:], case.mask[case.document:]
    loss = F.cross_entropy(logits[:-1].float().cpu(), torch.from_numpy(ids[1:]), reduction="none").numpy()
    return documents.right(logits.argmax(-1).cpu().numpy(), ids, mask), loss[mask[1:]].mean()


def divergence(case, logits):
    a, b = logits.float().log_softmax(-1), case.logits.float().log_softmax(-1)
    return (b.exp() * (b - a)).sum(-1).mean().item()


def compare(a, model, held, gates, length, count):
    facts = documents.Facts(Tokenizer.from_file(a.tokenizer), numpy.random.default_rng(11))
    rng = numpy.random.default_rng(12)
    results = {}
    for n in range(count):
        case = Case(model, *facts.document(held, length, 10))
        other = Case(model, *facts.document(held, length, 10, None, 1.0))
        start = int(rng.integers(len(held) - length))
        prose = Case(model, held[start:start + length].astype(numpy.int64), numpy.zeros(length, bool), length - 256)
        tables = [scores(c, gates) for c in (case, other, prose)]
        for c, name in (case, "full"), (other, "full"):
            r = results.setdefault(name, [[], [], [], []])
            (r[0] if c is case else r[2]).append(answers(c, c.logits))
        for name in tables[0]:
            for part in 4, 8, 16, 32:
                for everywhere in False, True:
                    if everywhere and (name.startswith(("key", "random")) or part == 4):
                        continue
                    r = results.setdefault(f"1/{part} {'all heads' if everywhere else 'each head'} {name}", [[], [], [], []])
                    masks = [keep(t[name], length // part, everywhere) for t in tables]
                    r[0].append(answers(case, ask(model, case, masks[0])))
                    r[2].append(answers(other, ask(model, other, masks[1])))
                    r[3].append(divergence(prose, ask(model, prose, masks[2])))
        for name, gate in gates.items():
            for part in 8, 16, 32:
                r = results.setdefault(f"1/{part} each head, live gate {name}", [[], [], [], []])
                r[0].append(answers(case, ask_live(model, case, gate, length // part)))
                r[2].append(answers(other, ask_live(model, other, gate, length // part)))
        for name in gates:  # one head keeps some, the others nothing but sinks and recent tokens
            for part in 1, 4, 8, 16, 32, 64:
                r = results.setdefault(f"1/{part} of head (5, 0) alone, gate {name}", [[], [], [], []])
                masks = [torch.zeros_like(t["gate " + name], dtype=torch.bool) for t in tables]
                for m, t in zip(masks, tables):
                    m[5, 0] = keep(t["gate " + name][5:6, :1], min(length // part, m.shape[-1]), False)[0, 0]
                r[0].append(answers(case, ask(model, case, masks[0])))
                r[2].append(answers(other, ask(model, other, masks[1])))
                r[3].append(divergence(prose, ask(model, prose, masks[2])))
    print(f"-- {length} tokens, {count} documents of 10 questions: recall, answer loss; recall of other forms; KL of prose after the document")
    for name, (main, _, other, prose) in results.items():
        mean = lambda pairs: (numpy.mean(sum((p[0] for p in pairs), [])), numpy.mean([p[1] for p in pairs]))
        print(f"{name:44} {mean(main)[0]:.3f} {mean(main)[1]:7.4f}   {mean(other)[0]:.3f} {mean(other)[1]:7.4f}   " +
              (f"{numpy.mean(prose):.4f}" if prose else "-"), flush=True)


def main():
    parser = argparse.ArgumentParser()
    for name in ("fledgling", "tokenizer", "text", "held", "out"):
        parser.add_argument(name)
    for name, value in ("seconds", 60), ("open-seconds", 100), ("tokens", 32768), ("open-tokens", 8192), ("workers", 12), ("documents", 10):
        parser.add_argument("--" + name, type=int, default=value)
    for name, value in ("lengths", [1024, 2048, 4096, 8192]), ("open-lengths", [1024, 2048]), ("compare", [8192]):
        parser.add_argument("--" + name, type=int, nargs="+", default=value)
    parser.add_argument("--share", type=float, default=1 / 16)
    parser.add_argument("--tiny", action="store_true")
    a = parser.parse_args()
    torch.manual_seed(1)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = models.load(a.fledgling).to(device, torch.bfloat16).eval().requires_grad_(False)
    text, held = numpy.load(a.text), numpy.load(a.held)
    gates = {name: Gate(model.s).to(device) for name in ("asked", "repeated", "both")}
    regress(a, model, text, gates)
    if a.open_seconds:
        gates["open"] = Gate(model.s).to(device)
        train_open(a, model, text, gates["open"])
    tensors = {f"{name}.{k}": p.detach().cpu().contiguous() for name, g in gates.items() for k, p in g.named_parameters()}
    save_file(tensors, pathlib.Path(a.out) / "gates.safetensors")
    with torch.no_grad():
        for length in a.compare:
            compare(a, model, held, gates, length, a.documents)


if __name__ == "__main__":
    main()
