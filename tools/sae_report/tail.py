"""The rest of a model goes on from reconstructions: documents, and the versions of their rows (docs/TAIL.md).

Everything is float64. The rest of the model is a function from hidden states [documents, tokens, d] to its outputs.
"""

from dataclasses import dataclass

import numpy as np

from .classify import counted, ordered, shaken
from .meanings import Meanings

TIE = 1e-5  # of the largest: two outputs that are closer than this may change places in float32
FRAGILE_TIE = 1e-2  # the same in documents with a row in which rounding may switch a latent on or off that is not tiny
TINY = 1e-4  # of the row's largest activation
SUM = 1e-5  # relative: sums that settle ties are as precise in float32
AT_ONCE = 4096  # tokens of documents of one length that are judged together


class Documents:
    """The documents of some rows of a data set, with all of their tokens."""

    def __init__(self, path, side, most=None):
        self.data, rows = side.data, side.row_numbers
        if self.data.starts is None:
            raise SystemExit(f"{path}: its rows belong to no documents")
        of = np.searchsorted(self.data.starts, rows, "right") - 1
        edges = np.concatenate([[0], np.flatnonzero(np.diff(of)) + 1, [len(rows)]])
        self.available = len(edges) - 1
        self.rows = [rows[a:b] for a, b in zip(edges[:-1], edges[1:])][:most]
        self.lengths = np.array([len(own) for own in self.rows])
        self.labels = None if self.data.labels is None else self.data.labels[[own[0] for own in self.rows]]
        meanings = Meanings(path, self.data)
        self.ids = meanings.ids
        for number, own in enumerate(self.rows):
            if meanings.positions is not None and not np.array_equal(meanings.positions[own], np.arange(len(own))):
                raise SystemExit(f"{path}: document {number} lacks tokens; export without --drop-first")

    def __len__(self):
        return len(self.rows)

    def hidden(self, numbers):
        """[documents, tokens, d] of documents of one length."""
        return np.stack([self.data.read(self.rows[number]).astype(np.float64) for number in numbers])

    def tokens(self, numbers):
        return np.stack([self.ids[self.rows[number]].astype(np.int64) for number in numbers])

    def batches(self, at_once=AT_ONCE, which=None):
        """Numbers of documents of one length, with at most `at_once` tokens together."""
        which = np.arange(len(self)) if which is None else which
        for length in np.unique(self.lengths[which]):
            some = which[self.lengths[which] == length]
            size = max(1, at_once // int(length))
            yield from (some[at : at + size] for at in range(0, len(some), size))


@dataclass
class Replaced:
    """Which rows are replaced: all but position 0, if it stays, and but those beyond the limit."""

    first_stays: bool
    limit: float
    count: int = 0
    beyond: int = 0
    mean: np.ndarray | None = None

    def places(self, x):
        """A mask [documents, tokens] of the rows of x [documents, tokens, d] that are replaced."""
        inside = np.sqrt((x**2).sum(2)) <= self.limit
        inside[:, 0] &= not self.first_stays
        return inside

    def measure(self, documents):
        """Counts all rows, and finds the mean of those that are replaced."""
        total = 0
        for numbers in documents.batches():
            x = documents.hidden(numbers)
            places = self.places(x)
            self.count += int(places.sum())
            self.beyond += int((~places[:, int(self.first_stays) :]).sum())
            total = total + x[places].sum(0)
        self.mean = total / self.count


def median_norm(documents, first_stays):
    """Of the rows that may be replaced."""
    each = [documents.hidden(numbers)[:, int(first_stays) :] for numbers in documents.batches()]
    return float(np.median(np.concatenate([np.sqrt((x**2).sum(2)).ravel() for x in each])))


@dataclass
class Ranking:
    """The first latents of each class, and for which n rounding may have chosen another of them."""

    first: dict
    doubt: dict  # class: set of n

    @classmethod
    def on(cls, model, side, ns, rule, threshold):
        found, most = cls({}, {}), max(ns, default=0)
        for c, fired, mass, moved in counted(model, side, rule, threshold, shake=True):
            order = ordered(fired, mass)
            found.first[c] = order[:most]
            found.doubt[c] = {n for n in ns if in_doubt(order[:n], order[n:], fired, mass, moved)}
        return found


def in_doubt(top, rest, fired, mass, moved):
    """Whether a latent of the rest might be before one of the top: some firings are in doubt, or sums are equal."""
    if not len(top) or not len(rest):
        return False
    least, most = (fired - moved)[top][:, None], (fired + moved)[rest][None]
    close = mass[rest][None] >= mass[top][:, None] * (1 - SUM)
    by_index = (mass[rest][None] == 0) & (mass[top][:, None] == 0)  # neither is ever active
    return bool(((most > least) | ((most == least) & close & ~by_index)).any())


class Codes:
    """Rows and their codes: the sum of the values of all latents, and of the first n of each row's class."""

    def __init__(self, model, x, ns=(), labels=None, ranking=None):
        self.b = model.w["b_dec"] if model.cfg["pre_bias"] else 0.0
        self.n, self.full = np.zeros((len(x), 1)), np.zeros_like(x)
        self.first, self.fragile = [np.zeros_like(x) for _ in ns], np.zeros(len(x), bool)
        for at in range(0, len(x), model.block()):
            some = slice(at, at + model.block())
            a, self.n[some] = model.encode(x[some])
            other, _ = model.encode(shaken(x[some]))
            large = TINY * np.abs(a).max(1, keepdims=True)
            self.fragile[some] = (((a != 0) != (other != 0)) & (np.abs(a + other) > large)).any(1)
            self.full[some] = a @ model.values
            for c in np.unique(labels[some]) if ns else ():
                mine = np.flatnonzero(labels[some] == c)
                for n, part in zip(ns, self.first, strict=True):
                    top = ranking.first[int(c)][:n]
                    part[at + mine] = a[np.ix_(mine, top)] @ model.values[top]

    def decoded(self, part):
        return self.n * part + self.b

    def chosen(self):
        """With the first n latents on, and off, for each n; then with all latents on, and off."""
        pairs = [*((part, self.full - part) for part in self.first), (self.full, np.zeros_like(self.full))]
        return [self.decoded(part) for pair in pairs for part in pair]


def spliced(x, places, versions):
    """x as it is, then with the rows at `places` replaced by each version: [versions + 1, documents, tokens, d]."""
    found = np.repeat(x[None], 1 + len(versions), axis=0)
    for own, rows in zip(found[1:], versions, strict=True):
        own[places] = rows
    return found


def gone_on(rest, hidden):
    """What the rest of the model makes of [versions, documents, tokens, d], in parts that it can take."""
    flat = hidden.reshape(-1, *hidden.shape[2:])
    size = rest.at_once(hidden.shape[2])
    out = np.concatenate([rest(flat[at : at + size]) for at in range(0, len(flat), size)])
    return out.reshape(*hidden.shape[:2], *out.shape[1:])
