"""Top-n classification: latents are ranked for each class on the training split and judged on the held-out split."""

import numpy as np

BUDGET = 1 << 27  # bytes of counters held at a time
NEAR = 1e-4  # relative: the two best scores of a row may change places in float32 if they are closer than this


SHAKEN = 1e-5  # relative: rows that are moved by so much show whose activations rounding may switch on or off


def shaken(x):
    """The rows, each number moved up or down by more than float32 rounds."""
    return x * (1 + SHAKEN * np.random.default_rng(0).choice([-1.0, 1.0], x.shape))


def counted(model, train, rule, threshold, shake=False):
    """Yields (class, firings of each latent, the sums that settle ties, firings in doubt) of every class that has rows."""
    latents = model.cfg["n_latents"]
    present = np.unique(train.labels)
    at_once = max(1, BUDGET // (24 * latents))

    def fires(x):
        a, _ = model.encode(x)
        return a, a != 0 if rule == "firing" else a > threshold

    for group in (present[i : i + at_once] for i in range(0, len(present), at_once)):
        fired, doubt = np.zeros((2, len(group), latents), np.int64)
        mass = np.zeros((len(group), latents))
        rows = np.flatnonzero(np.isin(train.labels, group))
        for some, x in train.blocks(model.block(), rows):
            a, firing = fires(x)
            moved = firing != fires(shaken(x))[1] if shake else np.zeros_like(firing)
            size = np.abs(a)
            if rule == "firing":
                norms = np.sqrt((a**2).sum(1, keepdims=True))
                size = np.divide(size, norms, out=np.zeros_like(size), where=norms > 0)
            labels = train.labels[some]
            for place, c in enumerate(group):
                mine = labels == c
                fired[place] += firing[mine].sum(0)
                mass[place] += size[mine].sum(0)
                doubt[place] += moved[mine].sum(0)
        yield from ((int(c), fired[place], mass[place], doubt[place]) for place, c in enumerate(group))


def ordered(fired, mass):
    """The latents of a class, best first. Sums are added up in another order here: differences by rounding count as ties."""
    return np.lexsort((np.arange(len(fired)), -np.round(mass, 9), -fired))


def ranking(model, train, classes, first, rule, threshold):
    """The first latents of each class that has training rows, best first: {class: [first]}."""
    return {c: ordered(fired, mass)[:first] for c, fired, mass, _ in counted(model, train, rule, threshold)}


class Accuracy:
    def __init__(self, classes):
        self.right, self.rows, self.near = (np.zeros(classes, np.int64) for _ in range(3))

    def add(self, scores, labels):
        """Adds rows with their scores for each class."""
        np.add.at(self.rows, labels, 1)
        np.add.at(self.right, labels[scores.argmax(1) == labels], 1)
        best = np.partition(scores, -2, axis=1)[:, -2:] if scores.shape[1] > 1 else np.repeat(scores, 2, 1)
        size = np.abs(scores).max(1)
        np.add.at(self.near, labels[(best[:, 1] - best[:, 0] <= NEAR * size) & (size > 0)], 1)

    def doubt(self, c):
        """Share of a class's rows whose answer rounding may change."""
        return self.near[c] / max(self.rows[c], 1)

    def doubt_over_classes(self):
        counted = np.flatnonzero(self.rows)
        return np.mean([self.doubt(c) for c in counted]) if len(counted) else 0

    def by_class(self):
        return {c: self.right[c] / self.rows[c] for c in np.flatnonzero(self.rows)}

    def over_classes(self):
        values = list(self.by_class().values())
        return np.mean(values) if values else np.nan

    def over_rows(self):
        return self.right.sum() / self.rows.sum()


class TopN:
    """Judges one model; `add` takes the held-out rows in blocks."""

    def __init__(self, model, train, head, names, rule, threshold):
        self.model, classes = model, len(head)
        self.unit = head / np.maximum(np.linalg.norm(head, axis=1, keepdims=True), 1e-12)
        self.ns = [None if name == "all" else int(name) for name in names]
        first = min(max([n for n in self.ns if n is not None], default=0), model.cfg["n_latents"])
        self.ranked = ranking(model, train, classes, first, rule, threshold)
        self.names, self.counts = names, np.isin(np.arange(classes), list(self.ranked))
        self.original, self.original_all, self.full = (Accuracy(classes) for _ in range(3))
        self.rows = [(Accuracy(classes), Accuracy(classes)) for _ in names]

    def scores(self, a, n):
        return self.model.decode(a, n) @ self.unit.T

    def add(self, x, a, n, labels):
        original, counts = x @ self.unit.T, self.counts[labels]
        self.original_all.add(original, labels)
        self.full.add(self.scores(a, n), labels)
        self.original.add(original[counts], labels[counts])
        x, a, n, labels = (v[counts] for v in (x, a, n, labels))
        rank = np.full(a.shape, np.iinfo(np.int64).max)
        for row, label in enumerate(labels):
            rank[row, self.ranked[int(label)]] = np.arange(len(self.ranked[int(label)]))
        for count, (on, off) in zip(self.ns, self.rows):
            kept = np.ones_like(rank, bool) if count is None else rank < count
            on.add(self.scores(a * kept, n), labels)
            off.add(self.scores(a * ~kept, n), labels)
