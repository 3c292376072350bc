"""A peer of the loader's bench: delivers batches by a torch DataLoader whenever a line comes in on stdin.

    loader.py PATH.npy BATCH STEPS [VARIANT] [WORKERS]

PATH.npy holds rows [N, d] in float16, and is mapped into memory; batches are float32, in a new random order each
epoch, the incomplete last one dropped. A turn is STEPS batches of an iterator that keeps running from turn to turn.
"peak_bytes" counts the pages of the map that are resident, and does not count WORKERS processes.

Variants:
    items           a Dataset of rows, shuffle=True, the default collate: what everybody writes first (the default)
    batched         the same, but `__getitems__` takes all rows of a batch from the map at once
    copy            no loader: all rows, in memory, converted to float32 in memory of their own; STEPS is not used
"""

import json
import resource
import sys
import time

import numpy as np
import torch


class Rows(torch.utils.data.Dataset):
    def __init__(self, path):
        self.path = path
        self.rows = np.load(path, mmap_mode="r")
        assert self.rows.ndim == 2 and self.rows.dtype == np.float16, (self.rows.shape, self.rows.dtype)

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        return torch.from_numpy(self.rows[index].astype(np.float32))

    def __getstate__(self):  # a worker that is spawned maps the file itself; numpy would send it a copy
        return self.path

    def __setstate__(self, path):
        self.__init__(path)


class Batches(Rows):
    def __getitems__(self, indices):
        return torch.from_numpy(self.rows[indices].astype(np.float32))


def as_it_is(batch):
    return batch


def batches(path, batch, variant, workers):
    dataset = {"items": Rows, "batched": Batches}[variant](path)
    loader = torch.utils.data.DataLoader(
        dataset,
        batch_size=batch,
        shuffle=True,
        drop_last=True,
        num_workers=workers,
        persistent_workers=workers > 0,
        collate_fn=as_it_is if variant == "batched" else None,
        generator=torch.Generator().manual_seed(0),
    )
    assert len(loader) > 0, f"{path} has less than {batch} rows"
    while True:
        yield from loader


def copies(path):
    rows = torch.from_numpy(np.load(path))
    converted = torch.ones(rows.shape, dtype=torch.float32)
    while True:
        converted.copy_(rows)
        yield converted


def main():
    path, batch, steps = sys.argv[1], *map(int, sys.argv[2:4])
    variant = sys.argv[4] if len(sys.argv) > 4 else "items"
    workers = int(sys.argv[5]) if len(sys.argv) > 5 else 0
    torch.manual_seed(0)
    if variant == "copy":
        steps, running = 1, copies(path)
    else:
        running = batches(path, batch, variant, workers)
    assert next(running).dtype == torch.float32  # starts the workers
    print(json.dumps({"ready": True}), flush=True)
    for _ in sys.stdin:
        rows = 0
        start = time.perf_counter()
        for _ in range(steps):
            rows += next(running).shape[0]
        seconds = time.perf_counter() - start
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        print(json.dumps({"seconds": seconds, "rows": rows, "peak_bytes": peak}), flush=True)


if __name__ == "__main__":
    main()
