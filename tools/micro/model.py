"""MiniMax-M2's forward in PyTorch, for training: every expert of a token's layer is computed, and those the
router did not choose are multiplied by zero. At this size that is faster than gathering.
"""

import dataclasses

import torch
import torch.nn.functional as F
from torch import nn

BLOCK = 128
FP8_MAX = 448.0


@dataclasses.dataclass
class Shape:
    vocab: int = 2048
    hidden: int = 256
    layers: int = 6
    heads: int = 8
    kv_heads: int = 2
    head_dim: int = 64
    rotary: int = 32
    experts: int = 8
    chosen: int = 2
    width: int = 192  # of one expert: one block and a half
    theta: float = 5e6
    eps: float = 1e-6


def rounded_to_fp8(weight):
    """[..., N, K] as it comes back from e4m3 codes and one scale for each block of 128 x 128."""
    rows, columns = weight.shape[-2:]
    padded = F.pad(weight, (0, -columns % BLOCK, 0, -rows % BLOCK))
    blocks = padded.unflatten(-1, (-1, BLOCK)).unflatten(-3, (-1, BLOCK))
    scale = blocks.abs().amax((-3, -1), keepdim=True).clamp_min(1e-12) / FP8_MAX
    codes = (blocks / scale).clamp(-FP8_MAX, FP8_MAX).to(torch.float8_e4m3fn)
    out = (codes.float() * scale).flatten(-4, -3).flatten(-2, -1)
    return out[..., :rows, :columns]


def quantised(weight):
    """FP8 rounding with a straight-through gradient."""
    return weight + (rounded_to_fp8(weight.detach()) - weight.detach())


def rms(x, weight, eps):
    x = x.float()
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps) * weight


def rotate(x, cosine, sine):
    """x [T, heads, head_dim]: the first 2 * half dims turn, in pairs (i, i + half)."""
    half = cosine.shape[-1]
    a, b, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    c, s = cosine[:, None], sine[:, None]
    return torch.cat([a * c - b * s, b * c + a * s, rest], -1)


class Layer(nn.Module):
    def __init__(self, shape):
        super().__init__()
        self.shape = s = shape
        q, kv = s.heads * s.head_dim, s.kv_heads * s.head_dim

        def matrix(*size):
            return nn.Parameter(torch.randn(size) * size[-1] ** -0.5)

        self.input_norm = nn.Parameter(torch.ones(s.hidden))
        self.post_norm = nn.Parameter(torch.ones(s.hidden))
        self.q_norm = nn.Parameter(torch.ones(q))
        self.k_norm = nn.Parameter(torch.ones(kv))
        self.q, self.k, self.v = matrix(q, s.hidden), matrix(kv, s.hidden), matrix(kv, s.hidden)
        self.o = matrix(s.hidden, q)
        self.gate = matrix(s.experts, s.hidden)
        self.w1, self.w3 = matrix(s.experts, s.width, s.hidden), matrix(s.experts, s.width, s.hidden)
        self.w2 = matrix(s.experts, s.hidden, s.width)
        with torch.no_grad():  # what a layer adds to the residual starts small
            self.o.mul_((2 * s.layers) ** -0.5)
            self.w2.mul_((2 * s.layers) ** -0.5)
        self.register_buffer("correction", torch.zeros(s.experts))

    def heads_of(self, x, cosine, sine):
        s = self.shape
        h = rms(x, self.input_norm, s.eps).bfloat16()
        q = rms(h @ quantised(self.q).bfloat16().T, self.q_norm, s.eps)
        k = rms(h @ quantised(self.k).bfloat16().T, self.k_norm, s.eps)
        v = h @ quantised(self.v).bfloat16().T
        q = rotate(q.unflatten(-1, (s.heads, -1)), cosine, sine).bfloat16()
        k = rotate(k.unflatten(-1, (s.kv_heads, -1)), cosine, sine).bfloat16()
        return q, k, v.unflatten(-1, (s.kv_heads, -1))

    def after_attention(self, x, mixed):
        """Returns the new residual and how many tokens each expert got, as a share."""
        s = self.shape
        x = x + (mixed.flatten(-2) @ quantised(self.o).bfloat16().T).float()
        h = rms(x, self.post_norm, s.eps)
        score = torch.sigmoid(h @ self.gate.T)
        best = (score.detach() + self.correction).topk(s.chosen, -1).indices
        mask = torch.zeros_like(score).scatter(-1, best, 1.0)
        weight = score * mask
        weight = weight / weight.sum(-1, keepdim=True)
        h = h.bfloat16()
        w1, w3 = quantised(self.w1).bfloat16().flatten(0, 1), quantised(self.w3).bfloat16().flatten(0, 1)
        inner = F.silu(h @ w1.T) * (h @ w3.T)
        inner = (inner.unflatten(-1, (s.experts, -1)) * weight.bfloat16()[..., None]).flatten(-2)
        w2 = quantised(self.w2).bfloat16().transpose(0, 1).flatten(1)
        return x + (inner @ w2.T).float(), mask.mean(0)


def packed_attention(q, k, v, bounds, longest):
    """Causal attention inside each document of a row: q [T, heads, d], bounds int32 [documents + 1]."""
    if q.is_cuda:
        return torch.ops.aten._flash_attention_forward(
            q, k, v, bounds, bounds, longest, longest, 0.0, True, False
        )[0]
    out, group = [], q.shape[1] // k.shape[1]
    for start, end in zip(bounds[:-1].tolist(), bounds[1:].tolist()):
        if end > start:
            part = [t[start:end].transpose(0, 1)[None].float() for t in (q, k, v)]
            part[1:] = [t.repeat_interleave(group, 1) for t in part[1:]]
            out.append(F.scaled_dot_product_attention(*part, is_causal=True)[0].transpose(0, 1))
    return torch.cat(out).to(q.dtype)


class Micro(nn.Module):
    def __init__(self, shape):
        super().__init__()
        self.shape = shape
        self.embed = nn.Parameter(torch.randn(shape.vocab, shape.hidden) * 0.5)
        self.layers = nn.ModuleList(Layer(shape) for _ in range(shape.layers))
        self.norm = nn.Parameter(torch.ones(shape.hidden))
        self.head = nn.Parameter(torch.randn(shape.vocab, shape.hidden) * shape.hidden**-0.5)

    def angles(self, positions):
        half = self.shape.rotary // 2
        i = torch.arange(half, device=positions.device, dtype=torch.float32)
        angle = positions.float()[:, None] * self.shape.theta ** (-i / half)
        return angle.cos(), angle.sin()

    def forward(self, ids, positions, bounds, longest):
        """Final hidden states [T, hidden] of packed documents, and the experts' loads [layers, experts]."""
        cosine, sine = self.angles(positions)
        x = self.embed[ids].bfloat16().float()
        loads = []
        for layer in self.layers:
            q, k, v = layer.heads_of(x, cosine, sine)
            x, load = layer.after_attention(x, packed_attention(q, k, v, bounds, longest))
            loads.append(load)
        return rms(x, self.norm, self.shape.eps), torch.stack(loads)

    def logits(self, hidden):
        return hidden.bfloat16() @ self.head.bfloat16().T

    @torch.no_grad()
    def balance(self, loads, rate):
        """Moves the correction biases towards equal loads, without a loss for it."""
        for layer, load in zip(self.layers, loads):
            layer.correction += rate * torch.sign(load.mean() - load)


# ---- Greedy answers, many at once ----


@torch.no_grad()
def generate(model, prompts, end, longest_answer, room=3072):
    """Greedy continuations (without the end token) of lists of ids; and whether each ended itself."""
    device, s = model.embed.device, model.shape
    count, width = len(prompts), max(map(len, prompts))
    room = min(room, width + longest_answer)
    keys = torch.zeros(s.layers, count, s.kv_heads, room, s.head_dim, device=device, dtype=torch.bfloat16)
    values = torch.zeros_like(keys)
    lengths = torch.tensor([len(p) for p in prompts], device=device)
    last = torch.zeros(count, s.hidden, device=device)
    # Prompts one after another into the cache, in one packed forward for a group of them.
    for row, prompt in enumerate(prompts):
        ids = torch.tensor(prompt, device=device)
        bounds = torch.tensor([0, len(prompt)], device=device, dtype=torch.int32)
        cosine, sine = model.angles(torch.arange(len(prompt), device=device))
        x = model.embed[ids].bfloat16().float()
        for i, layer in enumerate(model.layers):
            q, k, v = layer.heads_of(x, cosine, sine)
            keys[i, row, :, : len(prompt)], values[i, row, :, : len(prompt)] = k.transpose(0, 1), v.transpose(0, 1)
            x, _ = layer.after_attention(x, packed_attention(q, k, v, bounds, len(prompt)))
        last[row] = rms(x[-1], model.norm, s.eps)
    out, done = [], torch.zeros(count, dtype=torch.bool, device=device)
    rows, place = torch.arange(count, device=device), torch.arange(room, device=device)
    for step in range(longest_answer):
        token = model.logits(last).float().argmax(-1)
        done |= token == end
        out.append(torch.where(done, end, token))
        if step % 16 == 15 and bool(done.all()):
            break
        at = (lengths + step).clamp_max(room - 1)
        cosine, sine = model.angles(at)
        x = model.embed[token].bfloat16().float()
        seen = (place[None] <= at[:, None])[:, None, None]
        for i, layer in enumerate(model.layers):
            q, k, v = layer.heads_of(x, cosine, sine)
            keys[i, rows, :, at], values[i, rows, :, at] = k, v
            mixed = F.scaled_dot_product_attention(
                q[:, :, None], keys[i], values[i], attn_mask=seen, enable_gqa=True
            )
            x, _ = layer.after_attention(x, mixed[:, :, 0])
        last = rms(x, model.norm, s.eps)
    tokens = torch.stack(out, 1).tolist()
    return [row[: row.index(end)] if end in row else row for row in tokens], done.tolist()
