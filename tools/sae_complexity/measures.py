"""Measures of how complex a row is that the model does not see: from texts and WordNet, or from tokens and a language model."""

import argparse
import pathlib
from dataclasses import dataclass

import numpy as np

from sae_report.data import Side
from sae_report.meanings import Meanings

from . import ComplexityError
from .surprisal import cached
from .wordnet import of_glosses

FEW = 100  # rows with a measure; fewer say nothing


@dataclass(frozen=True)
class Measure:
    """A value per row; NaN where there is none. `complex`: 1 if large values are complex rows, -1 if small ones are, else 0."""

    name: str
    values: np.ndarray
    complex: int = 0


@dataclass(frozen=True)
class Found:
    """Measures of rows, notes for the reader, and the document [rows] of each (its own number where there are none)."""

    measures: list[Measure]
    notes: list[str]
    unit: np.ndarray
    documents: bool


def of_data(data: dict, train: Side, side: Side, args: argparse.Namespace) -> Found:
    """All measures that the files of the data set and the options allow."""
    named = data.get("held_out")
    meanings = Meanings(pathlib.Path(named if isinstance(named, str) else data["train"]), side.data)
    notes: list[str] = []
    measures = of_tokens(data, train, side, meanings, args, notes) + of_texts(side, meanings, args, notes)
    kept = [
        measure
        for measure in measures
        if np.isfinite(measure.values).sum() >= FEW and np.nanmin(measure.values) < np.nanmax(measure.values)
    ]
    notes += [f"{measure.name} is left out: it varies on fewer than {FEW} rows." for measure in measures if measure not in kept]
    if not kept:
        what = "the rows have neither tokens nor texts of their own" if not measures else " ".join(notes)
        raise ComplexityError(f"there is nothing to compare L0 with: {what}")
    if side.data.starts is None:
        return Found(kept, notes, np.arange(side.rows), False)
    document = np.unique(np.searchsorted(side.data.starts, side.row_numbers, "right"), return_inverse=True)[1]
    if document.max() == 0:
        raise ComplexityError("all held-out rows are of one document, and intervals need two at least")
    return Found(kept, notes, document, True)


def of_tokens(
    data: dict, train: Side, side: Side, meanings: Meanings, args: argparse.Namespace, notes: list[str]
) -> list[Measure]:
    if meanings.ids is None:
        return []
    if len(meanings.ids) != side.data.rows:
        raise ComplexityError("the data set has tokens for other rows than it has (data.drop_first_token?)")
    found = []
    if args.model is None:
        notes.append("No surprisals: --model was not given.")
    elif meanings.positions is None or meanings.texts is None or side.data.starts is None:
        notes.append("No surprisals: the data set lacks positions, texts or documents.")
    else:
        own, behind = cached(side, meanings, args)[side.row_numbers].T
        found += [Measure("surprisal of the token", own, 1), Measure("surprisal of the next token", behind, 1)]
    if (counts := token_counts(data, train, meanings)) is None:
        notes.append("No token frequency: the training data has no tokens.")
    else:
        found.append(Measure("frequency of the token (log)", np.log1p(counts[np.asarray(meanings.ids)[side.row_numbers]]), -1))
    if meanings.positions is not None:
        found.append(Measure("position in the document", np.asarray(meanings.positions)[side.row_numbers].astype(float)))
    return found


def token_counts(data: dict, train: Side, meanings: Meanings) -> np.ndarray | None:
    """How often every token occurs in the training rows."""
    own = Meanings(pathlib.Path(data["train"]), train.data)
    if own.ids is None or len(own.ids) != train.data.rows:
        return None
    return np.bincount(np.asarray(own.ids)[train.row_numbers], minlength=int(np.max(meanings.ids)) + 1)


def of_texts(side: Side, meanings: Meanings, args: argparse.Namespace, notes: list[str]) -> list[Measure]:
    """Only of texts that belong to one row each."""
    if meanings.texts is None or side.data.starts is not None or len(meanings.texts) != side.data.rows:
        return []
    texts = [meanings.text(row) for row in side.row_numbers]
    found = [Measure("words of the text", np.array([len(text.split()) for text in texts], float), 1)]
    if args.tokenizer is None:
        notes.append("No tokens of the text: --tokenizer was not given.")
    else:
        found.append(Measure("tokens of the text", text_tokens(args.tokenizer, texts), 1))
    if not (args.wordnet / "data.noun").is_file() or not (args.wordnet / "index.noun").is_file():
        notes.append(f"No senses and no depth: {args.wordnet} has no data.noun and index.noun (Debian package wordnet-base).")
        return found
    matches, senses, depth = np.array(list(of_glosses(args.wordnet, texts)), float).T
    if (matches > 0).any():
        one, several, none = (int(which.sum()) for which in (matches == 1, matches > 1, matches == 0))
        notes.append(
            f"{one:,} of {len(texts):,} texts are the gloss of one noun synset. {several:,} are the gloss of several and "
            f"{none:,} of none: they have no senses and no depth."
        )
        found.append(Measure("senses of the noun", np.where(senses > 0, senses, np.nan), 1))
        found.append(Measure("depth of the synset", np.where(depth >= 0, depth, np.nan)))
    return found


def text_tokens(path: pathlib.Path, texts: list[str]) -> np.ndarray:
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise ComplexityError("--tokenizer needs the package tokenizers") from error
    file = path / "tokenizer.json" if path.is_dir() else path
    if not file.is_file():
        raise ComplexityError(f"--tokenizer {path}: no tokenizer.json")
    tokenizer = Tokenizer.from_file(str(file))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return np.array([len(own.ids) for own in tokenizer.encode_batch(texts, add_special_tokens=False)], float)


def norms(side: Side) -> np.ndarray:
    return np.concatenate([np.sqrt((x**2).sum(1)) for _, x in side.blocks(4096)])


def part(side: Side, which: np.ndarray) -> Side:
    return Side(side.data, side.row_numbers[which])
