"""A peer of `cargo xtask bench`: does one training step whenever a line comes in on stdin.

    worker.py PEER BATCH WIDTH LATENTS [--device cuda:0] [--precision tf32] [--times 20]

Peers:
    torch-copy      one pass over a dictionary [M, d] that writes another
    torch-sgemm     the plain product q C^T by torch (MKL, cuBLAS)
    torch-released  the released model of arXiv 2604.14925 in dense torch, written for this bench:
                    K = C W_K, V = C W_V, sparsemax by sorting (as everybody writes it), gated scores, Adam
    torch-topk      TopK, k = 32, in dense torch: tied start, pre-bias, unit-norm decoder rows, Adam
    torch-topk-compiled  the same, its loss through torch.compile
    saelens-topk    SAELens' own TopK training step (SAETrainer._train_step), k = 32

Data are the same kind of rows that our own worker takes: sums of 32 of 4 d unit concepts, and noise. bf16 is torch's autocast
(SAELens has a setting for it); parameters and Adam stay in float32.
"""

import argparse
import contextlib
import json
import resource
import sys
import time

import torch

K = 32


def batches(batch, width, device, count=4):
    generator = torch.Generator().manual_seed(0)
    concepts = torch.randn(4 * width, width, generator=generator)
    concepts /= concepts.norm(dim=1, keepdim=True)
    rows = torch.zeros(count * batch, width)
    for _ in range(32):
        which = torch.randint(0, 4 * width, (count * batch,), generator=generator)
        strength = torch.rand(count * batch, 1, generator=generator) + 0.5
        rows += strength * concepts[which]
    rows += 0.05 * torch.randn(rows.shape, generator=generator)
    return [rows.to(device) for rows in rows.split(batch)]


def sparsemax_support(scores):
    """True where sparsemax(scores) > 0 (Martins & Astudillo 2016, algorithm 1)."""
    ordered, _ = torch.sort(scores, dim=1, descending=True)
    total = torch.cumsum(ordered, dim=1)
    rank = torch.arange(1, scores.shape[1] + 1, dtype=scores.dtype, device=scores.device)
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
        return ((x_hat - x) ** 2).sum(dim=1).mean(), None

    @torch.no_grad()
    def constrain_gradient(self):
        along = (self.decoder.grad * self.decoder).sum(dim=1, keepdim=True)
        self.decoder.grad -= along * self.decoder

    @torch.no_grad()
    def constrain(self):
        self.decoder /= self.decoder.norm(dim=1, keepdim=True)


def torch_step(model, data, autocast, compiled=False):
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, fused=data[0].is_cuda)
    of_batch = torch.compile(model.loss) if compiled else model.loss
    turn = [0]

    def step():
        x = data[turn[0] % len(data)]
        turn[0] += 1
        with autocast():
            loss, l0 = of_batch(x)
        loss.backward()
        if hasattr(model, "constrain_gradient"):
            model.constrain_gradient()
        optimizer.step()
        optimizer.zero_grad()
        if hasattr(model, "constrain"):
            model.constrain()
        return K if l0 is None else l0.item()

    return step


def saelens_step(batch, width, latents, data, device, bf16):
    from sae_lens.config import LoggingConfig, SAETrainerConfig
    from sae_lens.saes.topk_sae import TopKTrainingSAE, TopKTrainingSAEConfig
    from sae_lens.training.sae_trainer import SAETrainer

    sae = TopKTrainingSAE(TopKTrainingSAEConfig(d_in=width, d_sae=latents, k=K, device=device))
    config = SAETrainerConfig(
        total_training_samples=1_000_000_000,
        train_batch_size_samples=batch,
        device=device,
        autocast=bf16,
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


def discard(_result):
    return None


def arguments():
    parser = argparse.ArgumentParser()
    parser.add_argument("peer")
    parser.add_argument("sizes", nargs=3, type=int, metavar="SIZE")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", default="f32", choices=["f32", "tf32", "bf16"])
    parser.add_argument("--times", default=1, type=int)
    return parser.parse_args()


def work(peer, sizes, device, bf16):
    """The function that does the work of a peer once, and returns its L0 if it has one."""
    batch, width, latents = sizes

    def autocast():
        if not bf16:
            return contextlib.nullcontext()
        return torch.autocast(torch.device(device).type, dtype=torch.bfloat16)

    data = batches(batch, width, device)
    if peer in ("torch-sgemm", "torch-copy"):
        other = torch.randn(latents, width, device=device)
        if peer == "torch-copy":
            return lambda: discard(other * 2.0)
        if bf16:
            data, other = [data[0].bfloat16()], other.bfloat16()
        return lambda: discard(data[0] @ other.T)
    if peer == "torch-released":
        return torch_step(Released(width, latents).to(device), data, autocast)
    if peer in ("torch-topk", "torch-topk-compiled"):
        model = TopK(width, latents, data[0].mean(dim=0).cpu()).to(device)
        return torch_step(model, data, autocast, compiled=peer.endswith("compiled"))
    if peer == "saelens-topk":
        return saelens_step(batch, width, latents, data, device, bf16)
    sys.exit(f"no such peer: {peer}")


def main():
    args = arguments()
    if args.device.split(":")[0] not in ("cpu", "cuda"):
        sys.exit(f"torch is not measured on {args.device}")
    torch.manual_seed(0)
    torch.set_float32_matmul_precision("highest" if args.precision == "f32" else "high")
    on_gpu = args.device.startswith("cuda")
    step = work(args.peer, args.sizes, args.device, args.precision == "bf16")

    def turn():
        start = time.perf_counter()
        for _ in range(args.times):
            l0 = step()
        if on_gpu:
            torch.cuda.synchronize()
        return (time.perf_counter() - start) / args.times, l0

    turn()  # makes what a first step makes: optimizer state, buffers, compiled code
    print(json.dumps({"ready": True}), flush=True)
    for _ in sys.stdin:
        seconds, l0 = turn()
        of_turn = {"seconds": seconds, "l0": l0}
        of_turn["peak_bytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        if on_gpu:
            of_turn["device_bytes"] = torch.cuda.max_memory_reserved()
        print(json.dumps(of_turn), flush=True)


if __name__ == "__main__":
    main()
