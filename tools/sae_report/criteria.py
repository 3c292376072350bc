"""How well latents tell classes: k-sparse probes, single-latent F1, class entropy, with intervals over held-out rows."""

import numpy as np

MIN_CLASS_ROWS, MIN_ENTROPY_ROWS, RESAMPLES, SPECIFIC = 100, 10, 200, 0.5
KS, ACTIVATION_KS = (1, 2, 5, 20), (1, 5)
NEAR = 1e-3  # a score of a probe (of scale 1) that is closer to 0 than this may change its sign in float32
CLOSE = 1e-4  # relative: means or thresholds that are closer than this may change places in float32


def mixed(index):
    """splitmix64's output numbers `index`, an array of uint64."""
    z = np.asarray(index, np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def kept(rows, bound):
    """Indices of the rows in a sample."""
    return np.flatnonzero((mixed(np.arange(1, rows + 1)) >> np.uint64(32)) < np.uint64(bound))


def draws(rows):
    """How often each row is in each draw, [1 + RESAMPLES, rows]; the first draw is every row once."""
    random = mixed(np.arange(1, RESAMPLES * rows + 1)) >> np.uint64(32)
    drawn = ((random * np.uint64(rows)) >> np.uint64(32)).astype(np.int64).reshape(RESAMPLES, rows)
    return np.stack([np.ones(rows)] + [np.bincount(draw, minlength=rows).astype(float) for draw in drawn])


class Codes:
    """A sample of one side, by latent: of(j) gives the rows on which j is active, and its activations."""

    def __init__(self, side, bound, encode, width, block):
        self.index = kept(side.rows, bound)
        self.n, self.labels = len(self.index), side.labels[self.index]
        rows, latents, values = [], [], []
        for some, x in side.blocks(block, self.index):
            a = encode(x)
            row, latent = np.nonzero(a)
            rows.append(row + np.searchsorted(self.index, some[0]))
            latents.append(latent)
            values.append(a[row, latent])
        latents = np.concatenate(latents)
        order = np.argsort(latents, kind="stable")
        self.rows, self.values = np.concatenate(rows)[order], np.concatenate(values)[order]
        self.ends = np.searchsorted(latents[order], np.arange(width + 1))
        self.width = width

    def of(self, j):
        some = slice(self.ends[j], self.ends[j + 1])
        return self.rows[some], self.values[some]

    def dense(self, latents):
        x = np.zeros((self.n, len(latents)))
        for i, j in enumerate(latents):
            rows, values = self.of(j)
            x[rows, i] = values
        return x


def differences(train, classes):
    """|mean on the class - mean on the rest| of each class and latent; -1 for a latent that is never active."""
    found = np.full((len(classes), train.width), -1.0)
    for j in range(train.width):
        rows, values = train.of(j)
        if len(rows):
            for i, c in enumerate(classes):
                mine, of = train.labels[rows] == c, (train.labels == c).sum()
                found[i, j] = abs(values[mine].sum() / of - values[~mine].sum() / (train.n - of))
    return found


def logistic(x, y):
    """Coefficients and intercept of scikit-learn's LogisticRegression(C=1, class_weight="balanced"), by Newton's method."""
    x, n = np.column_stack([x, np.ones(len(x))]), len(y)
    weights = np.where(y, n / (2 * y.sum()), n / (2 * (~y).sum()))
    penalty = np.ones(x.shape[1])
    penalty[-1] = 0

    def loss(beta):
        return weights @ np.logaddexp(0, np.where(y, -1, 1) * (x @ beta)) + (penalty * beta**2).sum() / 2

    beta = np.zeros(x.shape[1])
    for _ in range(100):
        p = 1 / (1 + np.exp(-(x @ beta)))
        gradient = x.T @ (weights * (p - y)) + penalty * beta
        step = np.linalg.solve((x.T * (weights * p * (1 - p))) @ x + np.diag(penalty), gradient)
        before, part = loss(beta), 1.0
        if gradient @ step < 1e-12 * (1 + before):
            break
        while loss(beta - part * step) > before and part > 1e-6:
            part /= 2
        beta = beta - part * step
    return beta


class Scores:
    """Balanced accuracy and F1 of answers about a class in every draw, and how much of them is in doubt."""

    def __init__(self, said, truth, times, doubtful):
        hits, false = times @ (said & truth), times @ (said & ~truth)
        positives = times @ truth
        with np.errstate(divide="ignore", invalid="ignore"):
            self.balanced = (hits / positives + 1 - false / (times.sum(1) - positives)) / 2
            self.f1 = np.where(positives > 0, 2 * hits / (hits + false + positives), np.nan)
        some = max(said.sum() + truth.sum(), 1)
        self.doubt = max((doubtful & truth).mean() / truth.mean(), (doubtful & ~truth).mean() / (~truth).mean(),
                         2 * doubtful.sum() / some)


def probe(train, held_out, times, c, latents):
    x, y = train.dense(latents), train.labels == c
    units = x.std(0)
    units[units == 0] = 1
    beta = logistic(x / units, y)
    score = held_out.dense(latents) / units @ beta[:-1] + beta[-1]
    return Scores(score > 0, held_out.labels == c, times, np.abs(score) < NEAR)


def best_f1(train, classes):
    """For each class the largest F1 on the training rows of any latent with any threshold."""
    best = np.zeros(len(classes))
    of = np.array([(train.labels == c).sum() for c in classes])
    for j in range(train.width):
        rows, values = train.of(j)
        rows, values = rows[values > 0], values[values > 0]
        order = np.argsort(-values)
        last = np.append(np.diff(values[order]) != 0, True) if len(order) else np.zeros(0, bool)
        hits = np.cumsum(train.labels[rows[order], None] == classes, 0)
        f1 = 2 * hits / (np.arange(1, len(order) + 1)[:, None] + of)
        best = np.maximum(best, f1[last].max(0, initial=0))
    return best


def single(codes, times, c, latent, threshold):
    """Scores of one latent above a threshold."""
    a = codes.dense([latent])[:, 0]
    return Scores(a > threshold, codes.labels == c, times, np.abs(a - threshold) < CLOSE * threshold)


def entropies(held_out, times):
    """Entropies [latents, draws] of the latents that are active often enough."""
    _, places = np.unique(held_out.labels, return_inverse=True)
    classes, found = places.max() + 1, []
    for j in range(held_out.width):
        rows, values = held_out.of(j)
        if len(rows) < MIN_ENTROPY_ROWS:
            continue
        of = np.zeros((len(rows), classes))
        of[np.arange(len(rows)), places[rows]] = np.abs(values)
        mass = times[:, rows] @ of
        with np.errstate(divide="ignore", invalid="ignore"):
            p = mass / mass.sum(1, keepdims=True)
            found.append(-np.where(p > 0, p * np.log(p), p * 0).sum(1) / np.log(classes))
    return np.array(found)


def interval(columns):
    """The number, and the draws' 2.5 % and 97.5 % points, shifted so that the draws' mean is the number."""
    drawn = columns[1:][np.isfinite(columns[1:])]
    low, high = np.quantile(drawn, [0.025, 0.975]) - drawn.mean() + columns[0]
    return columns[0], low, high


class Criteria:
    """All numbers of the section, from the samples that the report names."""

    def __init__(self, model, train, held_out, report):
        latents, width = model.cfg["n_latents"], train.width

        def both(encode, width, suffix):
            sides = ((train, "train"), (held_out, "held_out"))
            return [Codes(side, report[name + suffix]["bound"], encode, width, model.block()) for side, name in sides]

        self.train, self.held_out = both(lambda x: model.encode(x)[0], latents, "")
        self.train_x, self.held_out_x = both(lambda x: x, width, "_activations")
        self.times = draws(self.held_out.n)
        self.classes = self.judged(self.train, self.held_out)
        self.differences = differences(self.train, self.classes)
        self.best_f1 = best_f1(self.train, self.classes)

    @staticmethod
    def judged(train, held_out):
        def judged(c):
            rows, tested = (train.labels == c).sum(), (held_out.labels == c).sum()
            return MIN_CLASS_ROWS <= rows < train.n and 1 <= tested < held_out.n

        return np.array([c for c in np.unique(train.labels) if judged(c)])

    def activations(self):
        """Scores of the probes of the activations themselves, by class and k."""
        classes, times = self.judged(self.train_x, self.held_out_x), draws(self.held_out_x.n)
        order = np.argsort(-differences(self.train_x, classes), axis=1, kind="stable")
        return [[probe(self.train_x, self.held_out_x, times, c, best[:k]) for k in ACTIVATION_KS]
                for c, best in zip(classes, order)]
