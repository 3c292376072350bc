"""Top-n classification by the rest of a model: right answers within each class, and how many of them rounding may change."""

import numpy as np

from .tail import FRAGILE_TIE, TIE, Codes, gone_on, spliced


class Answers:
    """Right answers of every class for each version: as it is, then (on, off) for each n and for all latents."""

    def __init__(self, documents, model, rest, replaced, ns, ranking, classes, progress):
        versions = 3 + 2 * len(ns)
        self.documents = np.zeros(classes, np.int64)
        self.right, self.near = np.zeros((2, versions, classes), np.int64)
        self.ns, self.ranking, self.fragile = ns, ranking, 0
        ranked = np.isin(documents.labels, list(ranking.first))
        for numbers in documents.batches(which=np.flatnonzero(ranked)):
            x, labels = documents.hidden(numbers), documents.labels[numbers]
            places = replaced.places(x)
            codes = Codes(model, x[places], ns, np.broadcast_to(labels[:, None], places.shape)[places], ranking)
            fragile = np.zeros(places.shape, bool)
            fragile[places] = codes.fragile
            self.add(gone_on(rest, spliced(x, places, codes.chosen())), labels, fragile.any(1))
            progress(len(numbers))

    def add(self, scores, labels, fragile):
        """Scores [versions, documents, classes]."""
        best = np.sort(scores, -1)[..., -2:]
        tie = np.broadcast_to(np.where(fragile, FRAGILE_TIE, TIE), scores.shape[:2]).copy()
        tie[0] = TIE  # nothing was replaced
        near = (best[..., -1] - best[..., 0] <= tie * np.abs(scores).max(-1)) & (scores.shape[-1] > 1)
        right = scores.argmax(-1) == labels
        self.fragile += int(fragile.sum())
        np.add.at(self.documents, labels, 1)
        for version in range(len(scores)):
            np.add.at(self.right[version], labels, right[version])
            np.add.at(self.near[version], labels, near[version])

    def near_ties(self):
        """Of all documents in all versions."""
        return int(self.near.sum())

    def of(self, version):
        """(accuracy within each class, share of its documents that are in doubt); NaN for a class without documents."""
        near = self.near[version].astype(float)
        if 0 < version <= 2 * len(self.ns):
            n = self.ns[(version - 1) // 2]
            for c in self.ranking.doubt:
                if n in self.ranking.doubt[c]:
                    near[c] = self.documents[c]
        with np.errstate(invalid="ignore"):
            return self.right[version] / self.documents, near / self.documents

    def over_classes(self, version):
        there = self.documents > 0
        return tuple(float(each[there].mean()) if there.any() else np.nan for each in self.of(version))

    def over_documents(self, version):
        total = self.documents.sum()
        return self.right[version].sum() / total, self.near[version].sum() / total
