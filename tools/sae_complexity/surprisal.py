"""Surprisals of the tokens of a data set under a language model, in nats, kept on disk because they take minutes.

The model reads the texts of the data set. Their tokens must be those of the rows: a document's first token, which the
rows may lack, comes from its text.
"""

import argparse
import hashlib
import pathlib
import sys

import numpy as np

from sae_report.data import Side
from sae_report.meanings import Meanings

from . import ComplexityError

FORMAT = "surprisal 2"
BATCH = 8  # documents


def documents_of(side: Side, meanings: Meanings) -> list[range]:
    """The rows of the data set of every document that has a row on this side."""
    numbers = np.unique(np.searchsorted(meanings.starts, side.row_numbers, "right") - 1)
    ends = np.append(meanings.starts[1:], meanings.rows)
    return [range(int(meanings.starts[d]), int(ends[d])) for d in numbers]


def cached(side: Side, meanings: Meanings, args: argparse.Namespace) -> np.ndarray:
    """-log p of every row's token given the text before it, and of the token behind it, [rows of the data set, 2].

    NaN for documents without a row on this side, for a token without text before it, and behind the last token.
    """
    documents = documents_of(side, meanings)
    local = pathlib.Path(args.model)
    model = local.resolve() if local.is_dir() else args.model
    key = hashlib.sha256(f"{FORMAT} {model} {args.gguf} {meanings.rows}".encode())
    for rows in documents:
        key.update(rows.start.to_bytes(8, "little"))
        key.update(np.asarray(meanings.ids[rows.start : rows.stop], "<i8").tobytes())
        key.update(np.asarray(meanings.positions[rows.start : rows.stop], "<i8").tobytes())
    path = args.cache / f"{key.hexdigest()[:24]}.npy"
    if path.is_file():
        return np.load(path)
    found = computed(documents, meanings, args)
    args.cache.mkdir(parents=True, exist_ok=True)
    whole = path.with_suffix(".tmp.npy")
    np.save(whole, found)
    whole.replace(path)
    return found


def token_ids(rows: range, document: int, meanings: Meanings, tokenizer: object) -> list[int]:
    """The tokens of a document up to its last row, checked against the rows."""
    positions = np.asarray(meanings.positions[rows.start : rows.stop])
    ids = tokenizer(meanings.text(rows.start))["input_ids"][: int(positions[-1]) + 1]
    if len(ids) <= positions[-1] or not np.array_equal(np.asarray(ids)[positions], meanings.ids[rows.start : rows.stop]):
        raise ComplexityError(
            f"document {document}: its rows have other tokens than its text under --model; is it the same model?"
        )
    return ids


def computed(documents: list[range], meanings: Meanings, args: argparse.Namespace) -> np.ndarray:
    try:
        import torch
        import transformers

        from sae_export import ExportError
        from sae_export.inputs import TextEncoder, load_model
    except ImportError as error:
        raise ComplexityError(f"surprisals need torch and transformers: {error}") from error
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    found = np.full((meanings.rows, 2), np.nan)
    try:
        with torch.inference_mode():
            model = load_model(transformers.AutoModelForCausalLM, args)
            encoder = TextEncoder(args, model, None)
            ids = [token_ids(rows, i, meanings, encoder.tokenizer) for i, rows in enumerate(documents)]
            order = sorted(range(len(ids)), key=lambda i: len(ids[i]))  # similar lengths share a batch
            for at in range(0, len(order), BATCH):
                some = order[at : at + BATCH]
                inputs = encoder.pad([ids[i] for i in some])
                for i, logits in zip(some, model(**inputs).logits, strict=True):
                    own = torch.tensor(ids[i], device=logits.device)
                    scores = torch.log_softmax(logits[: len(own) - 1].float(), dim=-1)
                    surprisal = -scores.gather(1, own[1:, None])[:, 0].double().cpu().numpy()
                    place(found, documents[i], meanings, surprisal)
                print(f"\rsurprisals of {at + len(some)} of {len(order)} documents", end="", file=sys.stderr, flush=True)
    except ExportError as error:
        raise ComplexityError(str(error)) from error
    print(file=sys.stderr)
    return found


def place(found: np.ndarray, rows: range, meanings: Meanings, surprisal: np.ndarray) -> None:
    """Put surprisals of the tokens 1.. of a document where its rows are."""
    padded = np.concatenate([[np.nan], surprisal, [np.nan]])  # by position; no text before the first, none behind the last
    positions = np.asarray(meanings.positions[rows.start : rows.stop])
    found[rows.start : rows.stop, 0] = padded[positions]
    found[rows.start : rows.stop, 1] = padded[positions + 1]
