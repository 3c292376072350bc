"""A peer of `cargo xtask bench`: does one training step whenever a line comes in on stdin.

    worker.py PEER BATCH WIDTH LATENTS

Peers:
    torch-sgemm     the plain product q C^T by torch (MKL)
    torch-released  the released model of arXiv 2604.14925 in dense torch, written for this bench:
                    K = C W_K, V = C W_V, sparsemax by sorting (as everybody writes it), gated scores, Adam
    torch-topk      TopK, k = 32, in dense torch: tied start, pre-bias, unit-norm decoder rows, Adam
    saelens-topk    SAELens' own TopK training step (SAETrainer._train_step), k = 32

Data are the same kind of rows that our own worker takes: sums of 32 of 4 d unit concepts, and noise.
"""

import json
import resource
import sys
import time

import torch

K = 32


def batches(batch, width, count=4):
    generator = torch.Generator().manual_seed(0)
    concepts = torch.randn(4 * width, width, generator=generator)
    concepts /= concepts.norm(dim=1, keepdim=True)
    rows = torch.zeros(count * batch, width)
    for _ in range(32):
        which = torch.randint(0, 4 * width, (count * batch,), generator=generator)
        strength = torch.rand(count * batch, 1, generator=generator) + 0.5
        rows += strength * concepts[which]
    rows += 0.05 * torch.randn(rows.shape, generator=generator)
    return list(rows.split(batch))


def sparsemax_support(scores):
    """True where sparsemax(scores) > 0 (Martins & Astudillo 2016, algorithm 1)."""
    ordered, _ = torch.sort(scores, dim=1, descending=True)
    total = torch.cumsum(ordered, dim=1)
    rank = torch.arange(1, scores.shape[1] + 1, dtype=scores.dtype)
    size = (1 + rank * ordered > total).sum(dim=1, keepdim=True)
    tau = (total.gather(1, size - 1) - 1) / size
    return scores > tau


class Released(torch.nn.Module):
    def __init__(self, width, latents):
        super().__init__()
        self.concepts = torch.nn.Parameter(torch.empty(latents, width))
        self.w_k = torch.nn.Parameter(torch.empty(width, width))
        self.w_v = torch.nn.Parameter(torch.empty(width, width))
        torch.nn.init.kaiming_uniform_(self.concepts.data.T)
        torch.nn.init.kaiming_uniform_(self.w_k)
        torch.nn.init.kaiming_uniform_(self.w_v)

    def loss(self, x):
        norm = x.norm(dim=1, keepdim=True)
        keys, values = self.concepts @ self.w_k, self.concepts @ self.w_v
        scores = (x / norm) @ keys.T
        with torch.no_grad():
            support = sparsemax_support(scores)
        x_hat = norm * ((scores * support) @ values)
        return 10 * ((x_hat - x) ** 2 / norm).mean(), support.sum(dim=1).float().mean()


class TopK(torch.nn.Module):
    def __init__(self, width, latents, mean):
        super().__init__()
        rows = torch.randn(latents, width)
        rows /= rows.norm(dim=1, keepdim=True)
        self.encoder = torch.nn.Parameter(rows.clone())
        self.decoder = torch.nn.Parameter(rows)
        self.encoder_bias = torch.nn.Parameter(torch.zeros(latents))
        self.pre_bias = torch.nn.Parameter(mean)

    def loss(self, x):
        scores = (x - self.pre_bias) @ self.encoder.T + self.encoder_bias
        values, indices = torch.topk(scores, K, dim=1)
        codes = torch.zeros_like(scores).scatter(1, indices, values.relu())
        x_hat = codes @ self.decoder + self.pre_bias
        return ((x_hat - x) ** 2).sum(dim=1).mean(), torch.tensor(float(K))

    @torch.no_grad()
    def constrain_gradient(self):
        along = (self.decoder.grad * self.decoder).sum(dim=1, keepdim=True)
        self.decoder.grad -= along * self.decoder

    @torch.no_grad()
    def constrain(self):
        self.decoder /= self.decoder.norm(dim=1, keepdim=True)


def torch_step(model, data):
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    turn = [0]

    def step():
        x = data[turn[0] % len(data)]
        turn[0] += 1
        loss, l0 = model.loss(x)
        loss.backward()
        if hasattr(model, "constrain_gradient"):
            model.constrain_gradient()
        optimizer.step()
        optimizer.zero_grad()
        if hasattr(model, "constrain"):
            model.constrain()
        return l0.item()

    return step


def saelens_step(batch, width, latents, data):
    from sae_lens.config import LoggingConfig, SAETrainerConfig
    from sae_lens.saes.topk_sae import TopKTrainingSAE, TopKTrainingSAEConfig
    from sae_lens.training.sae_trainer import SAETrainer

    sae = TopKTrainingSAE(TopKTrainingSAEConfig(d_in=width, d_sae=latents, k=K, device="cpu"))
    config = SAETrainerConfig(
        total_training_samples=1_000_000_000,
        train_batch_size_samples=batch,
        device="cpu",
        autocast=False,
        lr=1e-3,
        lr_end=1e-4,
        lr_scheduler_name="constant",
        lr_warm_up_steps=0,
        lr_decay_steps=0,
        adam_beta1=0.9,
        adam_beta2=0.999,
        n_restart_cycles=1,
        n_checkpoints=0,
        checkpoint_path=None,
        save_final_checkpoint=False,
        dead_feature_window=1000,
        feature_sampling_window=2000,
        logger=LoggingConfig(log_to_wandb=False),
    )
    trainer = SAETrainer(cfg=config, sae=sae, data_provider=iter(data))
    turn = [0]

    def step():
        x = data[turn[0] % len(data)]
        turn[0] += 1
        trainer._train_step(sae=sae, sae_in=x)
        trainer.n_training_steps += 1
        return float(K)

    return step


def main():
    peer, batch, width, latents = sys.argv[1], *map(int, sys.argv[2:5])
    torch.manual_seed(0)
    data = batches(batch, width)
    if peer == "torch-sgemm":
        other = torch.randn(latents, width)

        def step():
            data[0] @ other.T

    elif peer == "torch-released":
        step = torch_step(Released(width, latents), data)
    elif peer == "torch-topk":
        step = torch_step(TopK(width, latents, data[0].mean(dim=0)), data)
    elif peer == "saelens-topk":
        step = saelens_step(batch, width, latents, data)
    else:
        sys.exit(f"no such peer: {peer}")
    step()  # makes what a first step makes: optimizer state, buffers
    print(json.dumps({"ready": True}), flush=True)
    for _ in sys.stdin:
        start = time.perf_counter()
        l0 = step()
        seconds = time.perf_counter() - start
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        print(json.dumps({"seconds": seconds, "l0": l0, "peak_bytes": peak}), flush=True)


if __name__ == "__main__":
    main()
