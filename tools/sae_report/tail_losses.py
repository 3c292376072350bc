"""What is left of a language model's predictions: sums over documents, metrics, and how far rounding moves them."""

import numpy as np

from .criteria import draws
from .tail import FRAGILE_TIE, TIE, Codes, gone_on, spliced

NAMES = ("clean", "sae", "zero", "mean")
KEPT = (1, 5, 10)
LOSS = 2e-5  # nats: means of cross-entropies and KL in float32 differ by less
COLUMNS = ("predictions", *(f"{loss}_{name}" for loss in ("ce", "kl") for name in NAMES), *(f"kept_{n}" for n in KEPT),
           *(f"near_{n}" for n in KEPT))
LOGITS = 1 << 25  # numbers that are held at a time


def log_softmax(logits):
    moved = logits - logits.max(-1, keepdims=True)
    return moved - np.log(np.exp(moved).sum(-1, keepdims=True))


def kept(clean, sae, tie):
    """For each prediction and n: is the most likely token of `clean` among the n of `sae`, and is that in doubt?"""
    first = clean.argmax(-1)[..., None]
    own = np.take_along_axis(sae, first, -1)
    before = (sae > own) | ((sae == own) & (np.arange(sae.shape[-1]) < first))
    rank = before.sum(-1)
    others = sae.copy()
    np.put_along_axis(others, first, -np.inf, -1)
    best = np.partition(clean, -2, -1)[..., -2:]
    unsure = (best[..., 1] - best[..., 0] <= TIE * np.abs(clean).max(-1))
    found = []
    for n in KEPT:
        if n >= sae.shape[-1]:
            found.append((rank < n, np.zeros_like(unsure)))
            continue
        nth = np.partition(others, -n, -1)[..., -n]
        found.append((rank < n, unsure | (np.abs(own[..., 0] - nth) <= tie * np.abs(sae).max(-1))))
    return found


class Losses:
    """Sums of every document, by position: [documents, places, COLUMNS]; place i has positions 2^i to 2^(i + 1) - 1."""

    def __init__(self, documents, model, rest, replaced, progress):
        places = int(documents.lengths.max()).bit_length()
        self.sums = np.zeros((len(documents), places, len(COLUMNS)))
        self.fragile = 0
        at_once = max(1, LOGITS // (len(NAMES) * rest.outputs))
        which = np.flatnonzero(documents.lengths > 2)
        for numbers in documents.batches(at_once, which):
            x = documents.hidden(numbers)
            places = replaced.places(x)
            codes = Codes(model, x[places])
            versions = [codes.decoded(codes.full), 0.0, replaced.mean]
            logits = gone_on(rest, spliced(x, places, versions))[:, :, 1:-1]
            fragile = np.zeros(places.shape, bool)
            fragile[places] = codes.fragile
            self.fragile += int(fragile.any(1).sum())
            self.add(numbers, documents.tokens(numbers), logits, fragile.any(1))
            progress(len(numbers))

    def add(self, numbers, tokens, logits, fragile):
        log_p = log_softmax(logits)
        following = tokens[None, :, 2:, None]
        ce = -np.take_along_axis(log_p, np.broadcast_to(following, (len(NAMES), *following.shape[1:])), -1)[..., 0]
        kl = (np.exp(log_p[:1]) * (log_p[:1] - log_p)).sum(-1)
        tie = np.where(fragile, FRAGILE_TIE, TIE)[:, None]
        stay = kept(logits[0], logits[1], tie)
        columns = [np.ones(ce.shape[1:]), *ce, *kl, *(of for of, _ in stay), *(doubt for _, doubt in stay)]
        columns = np.stack(columns, -1)
        place = np.log2(np.arange(1, columns.shape[1] + 1)).astype(int)
        for i in np.unique(place):
            self.sums[numbers, i] += columns[:, place == i].sum(1)

    def per_prediction(self):
        """Name -> number for all documents and each draw of them, and the predictions in the same way."""
        sums = self.sums.sum(1)
        columns = dict(zip(COLUMNS, (draws(len(sums)) @ sums).T, strict=True))
        predictions = columns.pop("predictions")
        return {name: column / predictions for name, column in columns.items()}

    def metrics(self):
        """Name -> (columns, how far each may be off)."""
        of = self.per_prediction()
        loss = np.full_like(of["ce_clean"], LOSS)
        found = {}
        with np.errstate(divide="ignore", invalid="ignore"):
            for base, name in (("zero", "loss_recovered"), ("mean", "loss_recovered_mean")):
                found[name] = recovered(of[f"ce_{base}"], of["ce_sae"], of["ce_clean"])
        found |= {f"ce_{name}": (of[f"ce_{name}"], loss) for name in NAMES}
        found |= {f"kl_{name}": (of[f"kl_{name}"], loss) for name in NAMES[1:]}
        return found | {f"kept_first_{n}": (of[f"kept_{n}"], of[f"near_{n}"] + 1e-9) for n in KEPT}

    def near(self, n):
        return int(self.sums[..., COLUMNS.index(f"near_{n}")].sum())

    def by_position(self):
        """Yields (from, to, predictions, {name: (number, how far it may be off)})."""
        for place, sums in enumerate(self.sums.sum(0)):
            of = dict(zip(COLUMNS, sums, strict=True))
            predictions = of.pop("predictions")
            if predictions:
                own = {name: (of[name] / predictions, LOSS) for name in ("ce_clean", "ce_sae", "kl_sae")}
                with np.errstate(divide="ignore", invalid="ignore"):
                    own["loss_recovered"] = recovered(*(of[f"ce_{name}"] / predictions for name in ("zero", "sae", "clean")))
                yield 1 << place, (2 << place) - 1, int(predictions), own


def recovered(base, sae, clean):
    """(base - sae) / (base - clean), and how far it is off if each of the three is off by LOSS."""
    lost = base - clean
    found = (base - sae) / lost
    return found, 2 * LOSS * (1 + np.abs(found)) / np.maximum(np.abs(lost) - 2 * LOSS, 0)


def interval_with_bounds(columns, off):
    """[(number, how far it may be off)] of the number and of both ends of its interval (criteria.interval)."""
    finite = np.isfinite(columns[1:])
    drawn, error = columns[1:][finite], off[1:][finite]
    if not np.isfinite(columns[0]) or not len(drawn):
        return [(columns[0], off[0])] * 3
    if not np.isfinite(error).all():  # a draw in which an ablation may have cost nothing: its ends may lie anywhere
        return [(columns[0], off[0])] + [(columns[0], np.inf)] * 2
    shift = columns[0] - drawn.mean()
    found = [(columns[0], off[0])]
    for q in (0.025, 0.975):
        low, at, high = (np.quantile(some, q) for some in (drawn - error, drawn, drawn + error))
        found.append((at + shift, max(high - at, at - low) + error.mean() + off[0]))
    return found
