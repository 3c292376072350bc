"""How much of a language model's loss is recovered when reconstructions replace its activations.

In every document the rows x of a place in the model are replaced at all positions except 0, and the model goes on from there.
Position 0 stays, since language models use it as an attention sink. CE is the mean cross-entropy, in nats, of the next token at
these positions, except each document's last, which has no next token:

    CE_clean   x stays as it is
    CE_sae     x is replaced by x_hat
    CE_zero    x is replaced by zeros
    CE_mean    x is replaced by the mean of x over all replaced rows
    loss recovered          = (CE_zero - CE_sae) / (CE_zero - CE_clean)
    loss recovered (mean)   = (CE_mean - CE_sae) / (CE_mean - CE_clean)
    KL                      = mean over positions of KL(p_clean || p_sae), in nats
    FVU                     = sum ||x - x_hat||^2 / sum ||x - mean x||^2, over the replaced rows
    L0                      = latents that are not zero, mean over the replaced rows

Intervals are bootstrap intervals of 95 %: whole documents are drawn with replacement, the same draws for all dictionaries.
"""

import contextlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from .errors import DynamicSaeError
from .lm_place import Inputs, Place
from .model import NumpySae

DRAWS = 2000  # of the bootstrap
ROWS = 512  # per call of a dictionary
Replacement = Callable[[slice], np.ndarray]  # from a slice of the replaced rows to what stands in their place


def evaluate_lm(
    model: torch.nn.Module,
    tokenizer: Any,
    texts: Iterable[str] | Iterable[Sequence[int]],
    hook: str | int,
    sae: Any,
    *,
    context: int = 128,
    batch: int = 16,
    max_norm: float | str | None = None,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Losses of a language model with the reconstructions of a dictionary, or of several, in place of its activations.

    Args:
        model: a causal language model of transformers, or a HookedTransformer of TransformerLens.
        tokenizer: that of the model; not used if ``texts`` are tokens already.
        texts: the documents, as texts or as lists of token ids. Those of fewer than three tokens are left out.
        hook: the path of a module, whose input is replaced, such as ``"model.layers.15"`` or ``"blocks.15.hook_resid_pre"``; or
            the number of a block.
        sae: anything with ``encode(x [n, d]) -> [n, M]`` and ``decode``, such as a model of :func:`dynamic_sae.load` or SAELens'
            ``SAE``; or a function from rows ``[n, d]`` to their reconstruction. A dict of several shares the clean pass and
            the ablations.
        context: documents are cut to this number of tokens.
        batch: documents per forward pass.
        max_norm: rows beyond this norm stay as they are, for every dictionary and for both ablations: a number, or
            ``"10x median"`` of the rows here. Never compare numbers of different limits.
        seed: of the draws for the intervals.
        progress: called with the number of batches done and of all batches.

    Returns:
        ``documents``, ``predictions``, ``replaced_rows``, ``rows_beyond_max_norm``, ``max_norm``; ``clean``, ``zero`` and
        ``mean``, each with ``ce`` and ``kl``; and ``saes``, by name (``"sae"`` if there is one without a name), each with ``fvu``,
        ``l0`` (None of a function), ``ce``, ``kl``, ``loss_recovered`` and ``loss_recovered_mean``. Every measure is a dict of its
        ``value`` and its interval, ``low`` and ``high``.

    Raises:
        DynamicSaeError: if the hook, the texts or a dictionary do not fit the model.
    """
    saes = dict(sae) if isinstance(sae, Mapping) else {"sae": sae}
    with torch.inference_mode(), as_for_reading(model):
        place = Place(model, hook)
        tokens = documents_of(model, tokenizer, texts, context)
        batches = [padded_inputs(tokens[at : at + batch], model, tokenizer) for at in range(0, len(tokens), batch)]
        rows = np.concatenate([place.read(inputs)[mask].float().cpu().numpy() for inputs, mask in batches])
        document = np.repeat(np.arange(len(tokens)), [len(own) for own in tokens])
        here = np.diff(document, prepend=-1) == 0  # all but the first row of each document
        limit = norm_limit(max_norm, rows[here])
        here &= np.linalg.norm(rows, axis=1) <= limit
        if not here.any():
            raise DynamicSaeError(f"max_norm {max_norm}: all rows are beyond it; raise it")
        x = rows[here]
        mean = x.mean(0, dtype=np.float64).astype(np.float32)
        variants: dict[str, Replacement] = {"zero": lambda some: np.float32(0), "mean": lambda some: mean}
        weights = drawn(len(tokens), seed)
        variance = Variance(x, document[here], weights)
        fidelity = {}
        for name, own in saes.items():
            x_hat, active = reconstruct(own, x, name, next(model.parameters()).device)
            fidelity[name] = variance.fidelity(x_hat, active)
            variants[f"sae {name}"] = lambda some, x_hat=x_hat: x_hat[some]
        sums, predictions = losses(place, batches, rows, here, variants, progress)
    found = summary(sums, predictions, weights)
    return {
        "documents": len(tokens),
        "predictions": int(predictions.sum()),
        "replaced_rows": len(x),
        "rows_beyond_max_norm": len(rows) - len(tokens) - len(x),
        "max_norm": None if np.isinf(limit) else limit,
        **{name: {loss: found[name][loss] for loss in ("ce", "kl")} for name in ("clean", "zero", "mean")},
        "saes": {name: own | found[f"sae {name}"] for name, own in fidelity.items()},
    }


@contextlib.contextmanager
def as_for_reading(model: torch.nn.Module) -> Iterator[None]:
    """Within it, the model is in evaluation mode and keeps no cache, which is for generating text."""
    training, config = model.training, getattr(model, "config", None)
    cache = getattr(config, "use_cache", None)
    model.eval()
    if cache is not None:
        config.use_cache = False
    try:
        yield
    finally:
        model.train(training)
        if cache is not None:
            config.use_cache = cache


def documents_of(model: torch.nn.Module, tokenizer: Any, texts: Iterable[Any], context: int) -> list[list[int]]:
    """The tokens of documents of three tokens or more, the shortest first: similar lengths share a batch."""
    config = getattr(model, "config", None) or getattr(model, "cfg", None)
    longest = getattr(config, "max_position_embeddings", None) or getattr(config, "n_ctx", None)
    if not 0 < context or (longest is not None and context > longest):
        raise DynamicSaeError(f"context {context}: this model takes 1 to {longest} tokens; give a number among these")
    texts = list(texts)
    if texts and isinstance(texts[0], str):
        tokens = tokenizer(texts, truncation=True, max_length=context)["input_ids"]
    else:
        tokens = [[int(token) for token in own[:context]] for own in texts]
    tokens = [own for own in tokens if len(own) > 2]  # shorter ones have no position to replace and judge
    if len(tokens) < 2:
        raise DynamicSaeError("texts: fewer than two documents of three tokens or more; give more texts")
    return sorted(tokens, key=len)


def padded_inputs(tokens: list[list[int]], model: torch.nn.Module, tokenizer: Any) -> tuple[Inputs, torch.Tensor]:
    """The model's inputs, ids ``[documents, longest]`` padded on the right and their mask, and the mask as bool."""
    device = next(model.parameters()).device
    shape = (len(tokens), max(map(len, tokens)))
    ids = torch.full(shape, getattr(tokenizer, "pad_token_id", None) or 0)  # masked, so any token will do
    mask = torch.zeros(shape, dtype=torch.int64)
    for row, own in enumerate(tokens):
        ids[row, : len(own)] = torch.tensor(own, dtype=torch.int64)
        mask[row, : len(own)] = 1
    key = "input_ids" if hasattr(model, "config") else "input"  # HookedTransformer's name
    return {key: ids.to(device), "attention_mask": mask.to(device)}, mask.bool()


def norm_limit(given: float | str | None, rows: np.ndarray) -> float:
    """The norm beyond which rows stay as they are."""
    if given is None:
        return np.inf
    match = re.fullmatch(r"\s*([0-9.eE+-]+)\s*(x\s*median)?\s*", str(given))
    try:
        factor = float(match[1]) if match else -1.0
    except ValueError:
        factor = -1.0
    if not factor > 0:
        raise DynamicSaeError(f'max_norm {given}: expected a norm, such as 1500, or "10x median"')
    return factor * float(np.median(np.linalg.norm(rows, axis=1))) if match[2] else factor


def reconstruct(sae: Any, rows: np.ndarray, name: str, device: torch.device) -> tuple[np.ndarray, np.ndarray | None]:
    """``x_hat [n, d]`` of rows ``[n, d]``, and how many latents each uses ``[n]`` (None of a function)."""
    linear = hasattr(sae, "encode") and hasattr(sae, "decode")
    if not linear and not callable(sae):
        raise DynamicSaeError(f"sae {name}: neither encode and decode, nor a function; give a model of dynamic_sae.load")
    own = next(sae.parameters(), None) if isinstance(sae, torch.nn.Module) else None
    x_hat, active = np.empty_like(rows), []
    for at in range(0, len(rows), ROWS):
        some = slice(at, at + ROWS)
        part: Any = rows[some]
        if not isinstance(sae, NumpySae):
            part = torch.from_numpy(part).to(device if own is None else own.device, torch.float32 if own is None else own.dtype)
        try:
            latents = sae.encode(part) if linear else None
            result = sae.decode(latents) if linear else sae(part)
        except (RuntimeError, ValueError) as error:
            raise DynamicSaeError(f"sae {name}: it does not take rows of width {rows.shape[1]} ({str(error).splitlines()[0]}); "
                                  "give one that was trained at this place of this model") from error
        if tuple(result.shape) != part.shape:
            raise DynamicSaeError(f"sae {name}: it makes {list(result.shape)} of rows {list(part.shape)}; give a dictionary that "
                                  "reconstructs its input")
        x_hat[some] = array(result)
        if linear:
            active.append((array(latents) != 0).sum(1))
    if not np.isfinite(x_hat).all():
        raise DynamicSaeError(f"sae {name}: reconstructions are not finite; look for NaN in its weights")
    return x_hat, np.concatenate(active) if linear else None


def array(values: Any) -> np.ndarray:
    """A numpy array of an array or a tensor."""
    if not isinstance(values, torch.Tensor):
        return np.asarray(values)
    values = values.to_dense() if values.is_sparse else values
    return (values.float() if values.dtype is torch.bfloat16 else values).detach().cpu().numpy()


def drawn(documents: int, seed: int) -> np.ndarray:
    """How often each document counts ``[1 + DRAWS, documents]``: first once each, then as they are drawn."""
    rng = np.random.default_rng(seed)
    draws = rng.multinomial(documents, np.full(documents, 1 / documents), size=DRAWS)
    return np.concatenate([np.ones((1, documents)), draws])


def measure(values: np.ndarray) -> dict[str, float]:
    """The value, which comes first, and the interval of those that were drawn."""
    low, high = np.percentile(values[1:], [2.5, 97.5])
    return {"value": float(values[0]), "low": float(low), "high": float(high)}


class Variance:
    """The replaced rows ``x [n, d]`` of documents ``[n]``, to hold reconstructions against."""

    def __init__(self, x: np.ndarray, document: np.ndarray, weights: np.ndarray):
        self.x, self.document, self.weights = x.astype(np.float64), document, weights
        centred = self.x - self.x.mean(0)
        totals = np.zeros((weights.shape[1], x.shape[1]))
        np.add.at(totals, document, centred)
        self.rows = weights @ self.by_document(np.ones(len(x)))
        self.total = weights @ self.by_document((centred**2).sum(1)) - ((weights @ totals) ** 2).sum(1) / self.rows

    def by_document(self, values: np.ndarray) -> np.ndarray:
        """Sums of values ``[n]`` over the rows of each document."""
        return np.bincount(self.document, values, self.weights.shape[1])

    def fidelity(self, x_hat: np.ndarray, active: np.ndarray | None) -> dict[str, Any]:
        """FVU and L0 of reconstructions ``[n, d]`` and of the latents that each row uses ``[n]``."""
        fvu = self.weights @ self.by_document(((self.x - x_hat) ** 2).sum(1)) / self.total
        return {"fvu": measure(fvu),
                "l0": None if active is None else measure(self.weights @ self.by_document(active.astype(float)) / self.rows)}


def losses(
    place: Place,
    batches: list[tuple[Inputs, torch.Tensor]],
    rows: np.ndarray,
    replaced: np.ndarray,
    variants: dict[str, Replacement],
    progress: Callable[[int, int], None] | None = None,
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """For each variant and for "clean", sums of (CE, KL) over predictions ``[documents, 2]``; predictions ``[documents]``.

    Args:
        place: where rows are replaced.
        batches: inputs and masks of the documents.
        rows: the rows of all tokens ``[tokens, d]``.
        replaced: which of them are replaced ``[tokens]``.
        variants: what they are replaced by.
        progress: called with the number of batches done and of all.
    """
    sums: dict[str, list[np.ndarray]] = {name: [] for name in ("clean", *variants)}
    predictions, token, row = [], 0, 0
    for number, (inputs, mask) in enumerate(batches):
        tokens = slice(token, token + int(mask.sum()))
        here = replaced[tokens]
        some = slice(row, row + int(here.sum()))
        token, row = tokens.stop, some.stop
        hidden = rows[tokens].copy()
        if number == 0:
            place.check(inputs, mask, padded(mask, hidden, place))
        judged = mask.clone()  # positions with a next token, except 0
        judged[:, :-1] &= mask[:, 1:]
        judged[:, -1] = judged[:, 0] = False

        def log_probabilities() -> torch.Tensor:
            logits = place.logits(inputs, padded(mask, hidden, place))
            return torch.log_softmax(logits[judged.to(logits.device)].float(), dim=-1)

        clean = log_probabilities()
        sums["clean"].append(sums_by_document(clean, clean, inputs, judged))
        for name, replacement in variants.items():
            hidden[here] = replacement(some)
            sums[name].append(sums_by_document(clean, log_probabilities(), inputs, judged))
        predictions.append(judged.sum(1).numpy())
        if progress is not None:
            progress(number + 1, len(batches))
    return {name: np.concatenate(parts) for name, parts in sums.items()}, np.concatenate(predictions)


def padded(mask: torch.Tensor, hidden: np.ndarray, place: Place) -> torch.Tensor:
    """Rows of tokens as hidden states ``[documents, longest, d]`` in the model's own type and on its device."""
    states = torch.zeros((*mask.shape, hidden.shape[1]))
    states[mask] = torch.from_numpy(hidden)
    parameter = next(place.model.parameters())
    return states.to(parameter.device, parameter.dtype)


def sums_by_document(clean: torch.Tensor, other: torch.Tensor, inputs: Inputs, judged: torch.Tensor) -> np.ndarray:
    """Sums of (CE, KL) ``[documents, 2]`` of log-probabilities ``[predictions, vocabulary]`` at the judged positions."""
    ids = next(iter(inputs.values()))
    following = torch.roll(ids, -1, dims=1)[judged.to(ids.device)].to(clean.device)
    ce = -other.gather(1, following[:, None])[:, 0]
    kl = torch.zeros_like(ce) if other is clean else (clean.exp() * (clean - other)).sum(1)
    sums = np.zeros((len(judged), 2))
    np.add.at(sums, judged.nonzero()[:, 0].numpy(), torch.stack([ce, kl], dim=1).double().cpu().numpy())
    return sums


def summary(sums: dict[str, np.ndarray], predictions: np.ndarray, weights: np.ndarray) -> dict[str, dict[str, dict[str, float]]]:
    """CE, KL and loss recovered of every variant, with intervals."""
    means = {name: weights @ own / (weights @ predictions)[:, None] for name, own in sums.items()}
    found = {}
    for name, own in means.items():
        found[name] = {"ce": measure(own[:, 0]), "kl": measure(own[:, 1])}
        for key, base in (("loss_recovered", "zero"), ("loss_recovered_mean", "mean")):
            lost = means[base][:, 0] - means["clean"][:, 0]
            found[name][key] = measure((means[base][:, 0] - own[:, 0]) / lost)
    return found


def markdown(result: dict[str, Any]) -> str:
    """The result of :func:`evaluate_lm` as a table of Markdown."""

    def interval(entry: dict[str, float]) -> str:
        return f"{entry['value']:.4f} [{entry['low']:.4f}, {entry['high']:.4f}]"

    lines = ["|  | FVU | L0 | CE | KL | loss recovered | against the mean |", "|---|---:|---:|---:|---:|---:|---:|"]
    for name in ("clean", "zero", "mean"):
        own = result[name]
        lines.append(f"| {name} |  |  | {own['ce']['value']:.4f} | {own['kl']['value']:.4f} |  |  |")
    for name, own in result["saes"].items():
        l0 = "" if own["l0"] is None else f"{own['l0']['value']:.1f}"
        numbers = f"{own['fvu']['value']:.4f} | {l0} | {own['ce']['value']:.4f} | {own['kl']['value']:.4f}"
        lines.append(f"| {name} | {numbers} | {interval(own['loss_recovered'])} | {interval(own['loss_recovered_mean'])} |")
    return "\n".join(lines)
