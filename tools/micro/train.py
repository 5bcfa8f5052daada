#!/usr/bin/env python3
"""Trains m2-micro. A GPU takes minutes; a CPU does for a trial (--steps 20 --tokens 4096).

    tools/micro/train.py TOKENIZER.json OUT.pt [--steps N]

Documents are made on the way by --workers processes (corpus.py), each seen once; batch n is the same in
every run. Weights are FP8-rounded in every forward, so that what is exported is what was trained.
"""

import argparse
import math
import multiprocessing
import time

import numpy as np
import torch
import torch.nn.functional as F

import corpus
from evaluate import evaluate
from model import Micro, Shape

MOST_DOCUMENTS = 512


def make_batch(arguments):
    path, token_words, number, tokens = arguments
    global encoder
    if "encoder" not in globals():
        encoder = corpus.Encoder(path, token_words)
    return corpus.pack(encoder, number, tokens)


def on_device(batch, device):
    """ids, positions in documents, bounds (of fixed length), places of the tokens that are learnt, targets."""
    ids, written, lengths = batch
    bounds = np.full(MOST_DOCUMENTS + 1, len(ids), np.int32)
    bounds[0] = 0
    bounds[1 : len(lengths) + 1] = np.cumsum(lengths)
    positions = np.arange(len(ids), dtype=np.int32) - np.repeat(bounds[: len(lengths)], lengths)
    # Token t is learnt from the hidden state of t - 1.
    places = np.flatnonzero(written[1:])
    move = lambda array: torch.from_numpy(array).to(device, non_blocking=True)
    return move(ids.astype(np.int64)), move(positions), move(bounds), move(places), move(ids[places + 1].astype(np.int64))


def optimizer_of(model, peak):
    matrices = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim == 1]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=peak, betas=(0.9, 0.95), fused=model.embed.is_cuda)


def rate_at(step, steps, peak, warmup=300):
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup))))


def train(model, options, device):
    forward = torch.compile(model) if options.compile else model
    optimizer = optimizer_of(model, options.rate)
    numbers = range(options.first, options.first + options.steps)
    jobs = ((options.tokenizer, options.token_words, n, options.tokens) for n in numbers)
    start = last = time.monotonic()
    loss_sum = torch.zeros((), device=device)
    waited = 0.0
    with multiprocessing.get_context("spawn").Pool(options.workers) as pool:
        batches = pool.imap(make_batch, jobs, chunksize=2)
        for step in range(options.steps):
            before = time.monotonic()
            batch = next(batches)
            waited += time.monotonic() - before
            ids, positions, bounds, places, targets = on_device(batch, device)
            hidden, loads = forward(ids, positions, bounds, corpus.LONGEST)
            loss = F.cross_entropy(model.logits(hidden[places]).float(), targets)
            loss.backward()
            norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            for group in optimizer.param_groups:
                group["lr"] = rate_at(step, options.steps, options.rate)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            model.balance(loads.detach(), 1e-3 if step < 0.8 * options.steps else 0.0)
            loss_sum += loss.detach()
            every = options.log
            if (step + 1) % every == 0:
                now = time.monotonic()
                print(f"step {step + 1}: loss {loss_sum.item() / every:.4f}, gradient {norm.item():.3f}, "
                      f"{(now - last) / every * 1000:.1f} ms a step (waited {waited / every * 1000:.1f}), "
                      f"load {loads.min().item():.2f}-{loads.max().item():.2f}, {now - start:.0f} s", flush=True)  # fmt: skip
                final = loss_sum.item() / every
                loss_sum.zero_()
                torch.save({"model": model.state_dict(), "loss": final, "options": vars(options)}, options.out)
                last, waited = now, 0.0
            if options.seconds and time.monotonic() - start > options.seconds:
                print(f"stopped by the clock at step {step + 1}")
                break
    return final


def main():
    options = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    options.add_argument("tokenizer")
    options.add_argument("out")
    options.add_argument("--steps", type=int, default=20000)
    options.add_argument("--first", type=int, default=0, help="number of the first batch")
    options.add_argument("--token-words", type=float, default=0.0, help="share of words made of tokens")
    options.add_argument("--tokens", type=int, default=32768, help="of one batch")
    options.add_argument("--rate", type=float, default=2e-3)
    options.add_argument("--workers", type=int, default=2)
    options.add_argument("--log", type=int, default=200)
    options.add_argument("--seconds", type=float, default=0)
    options.add_argument("--start", help="weights to go on from")
    options.add_argument("--compile", action=argparse.BooleanOptionalAction, default=True)
    options.add_argument("--items", type=int, default=200, help="held-out items of each skill to ask at the end")
    options = options.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(0)
    torch.backends.cuda.matmul.allow_tf32 = False
    model = Micro(Shape())
    if options.start:
        model.load_state_dict(torch.load(options.start, map_location="cpu")["model"])
    model.to(device)
    print(f"{sum(p.numel() for p in model.parameters()) / 1e6:.2f} million parameters on {device}")
    loss = train(model, options, device)
    torch.save({"model": model.state_dict(), "loss": loss, "options": vars(options)}, options.out)
    if options.items:
        evaluate(model, corpus.Encoder(options.tokenizer), options.items)


if __name__ == "__main__":
    main()
