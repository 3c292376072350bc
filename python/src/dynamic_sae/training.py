"""Trains from Python: :func:`train` runs the program ``sae-train`` and returns the model."""

import contextlib
import difflib
import functools
import json
import os
import pathlib
import re
import shutil
import sys
from collections.abc import Generator, Mapping
from typing import Any

import numpy as np

from . import programs, saved
from .errors import DynamicSaeError
from .model import load
from .writer import ActivationWriter

SECTIONS = ("data", "model", "training", "eval")
PIECE_BYTES = 16 << 20  # of rows in memory that are written together
PROGRESS = re.compile(r"step +\d+/\d+ ")  # the number is padded
STORED = {"float16": "f16", "float32": "f32", "float64": "f32", "bfloat16": "bf16"}


def train(
    rows: Any, *, run: str | pathlib.Path, held_out: Any = None, resume: bool = False, start: str | pathlib.Path | None = None,
    threads: int | None = None, progress: bool = True, **config: Any,
) -> Any:
    """Trains a sparse autoencoder with the program ``sae-train`` and returns it.

    Args:
        rows: activations, ``[n, d]`` or ``[examples, tokens, d]`` (numpy array or torch tensor), or the path of a data set that
            docs/DATA.md describes. Rows in memory are written as shards into ``RUN.rows/train`` beside the run directory (and
            ``RUN.rows/held_out``), since resuming and evaluating need them: f16 and bf16 as they are, others as f32.
        run: the run directory, such as ``"runs/first"``; a name alone means ``runs/NAME``.
        held_out: activations or a path like ``rows``; a part such as ``0.1`` (the default); or a dict, as ``data.held_out`` of a
            config has it.
        resume: continue this run from its last checkpoint, or start it if it has not begun.
        start: a run or a saved model to start from in place of fresh parameters.
        threads: number of compute threads. Default: all processors.
        progress: print the program's lines; in a notebook, the line of the progress is updated.
        config: keys of docs/CONFIG.md: by their name (``steps=600, architecture="topk", k=32``), which is looked up in [model],
            [training], [data] and the top; by their whole name (``**{"eval.tail.documents": 100}``); or as a section
            (``training={"steps": 600}``).

    Returns:
        the model, as :func:`dynamic_sae.load` gives it, with the attribute ``run_dir``, the path of the run directory.

    Raises:
        DynamicSaeError: if a key is unknown, or with the program's message if it fails.
        KeyboardInterrupt: if it was stopped. The program keeps a checkpoint; the same call with ``resume=True`` continues.

    Example:
        >>> model = dynamic_sae.train(rows, run="runs/first", n_latents=2048, steps=600, batch_size=1024)
    """
    settings = settings_of(config)
    directory = pathlib.Path(run)
    if directory.name == str(run):
        directory = pathlib.Path(settings.get("runs_dir", "runs")) / run
    settings |= {"run": directory.name, "runs_dir": str(directory.parent)}
    if directory.exists() and not resume:
        raise DynamicSaeError(f"{directory}: this run exists; pass resume=True to continue it, or give another run=")
    beside = directory.with_name(directory.name + ".rows")
    settings["data.train"] = data_path(rows, beside / "train", directory.exists())
    if isinstance(held_out, float | int):
        settings["data.held_out"] = {"fraction": float(held_out)}
    elif held_out is not None:
        given = isinstance(held_out, Mapping)
        settings["data.held_out"] = held_out if given else data_path(held_out, beside / "held_out", directory.exists())
    command = [programs.program("sae-train"), os.devnull, "--plain"]  # the config is empty: all keys are set here
    for key, value in settings.items():
        command += ["--set", f"{key}={toml(value, key)}"]
    command += ["--resume"] if resume else []
    command += ["--from", str(start)] if start is not None else []
    command += ["--threads", str(threads)] if threads is not None else []
    follow(programs.lines_of(command), progress, directory)
    model = load(directory)
    model.run_dir = directory
    return model


def settings_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """Values by the whole names of their keys, such as ``"training.lr"``. A value of None is the default."""
    settings: dict[str, Any] = {}
    flat: dict[str, Any] = {}
    for name, value in config.items():
        if name in SECTIONS and isinstance(value, Mapping):
            settings |= flattened(name, value)
        elif "." in name:
            settings[name] = value
        else:
            flat[name] = value
    architecture = flat.get("architecture", settings.get("model.architecture", "attention"))
    settings |= {whole_name(name, str(architecture)): value for name, value in flat.items()}
    return {name: value for name, value in settings.items() if value is not None}


def flattened(section: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of a section by their whole names; ``eval`` has the section ``tail``."""
    settings: dict[str, Any] = {}
    for name, value in values.items():
        if section == "eval" and isinstance(value, Mapping):
            settings |= flattened(f"{section}.{name}", value)
        else:
            settings[f"{section}.{name}"] = value
    return settings


def whole_name(name: str, architecture: str) -> str:
    """The whole name of a key, from what ``sae-train --init`` prints."""
    every: dict[str, str] = {}
    for other in (architecture, *(other for other in saved.OWN if other != architecture)):
        known = keys_of(other)
        if name in known:
            return known[name]
        every |= known
    close = difflib.get_close_matches(name, every, n=3)
    hint = f"is {' or '.join(close)} meant? " if close else ""
    raise DynamicSaeError(f"{name}: no config has this key; {hint}docs/CONFIG.md and sae-train --init {architecture} have all "
                          "keys (those of [eval.tail] need their whole name)")


@functools.cache
def keys_of(architecture: str) -> dict[str, str]:
    """Whole names by short names, of the top, [data], [model] and [training]."""
    names: dict[str, str] = {}
    section = ""
    for line in programs.output_of("sae-train", "--init", architecture).splitlines():
        if header := re.fullmatch(r"\[([a-z.]+)\]", line):
            section = header[1] + "."
        elif (key := re.match(r"(?:# )?([a-z0-9_]+)(?: = |: )", line)) and not section.startswith("eval."):
            names[key[1]] = section + key[1]
    return names


def toml(value: Any, key: str) -> str:
    """A value as TOML."""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, str | os.PathLike):
        return json.dumps(os.fspath(value), ensure_ascii=False)
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{name} = {toml(entry, key)}" for name, entry in value.items()) + " }"
    if isinstance(value, list | tuple | np.ndarray):
        return "[" + ", ".join(toml(entry, key) for entry in value) + "]"
    raise DynamicSaeError(f"{key}: {type(value).__name__} is no value of a config; give a number, a string, a list or a dict")


def data_path(data: Any, directory: pathlib.Path, used: bool) -> str:
    """The path of a data set; rows in memory are written into ``directory``.

    Args:
        data: rows or a path.
        directory: where rows go.
        used: a run exists that may have been trained on what is there.
    """
    if isinstance(data, str | os.PathLike):
        return os.fspath(data)
    if used and (directory / "index.json").is_file():
        check_same(data, directory)
    else:
        write_rows(data, directory)
    return str(directory)


def write_rows(rows: Any, directory: pathlib.Path) -> None:
    """Writes rows in memory as shards, piece by piece."""
    name = str(getattr(rows, "dtype", "")).removeprefix("torch.")
    if name not in STORED or len(rows.shape) not in (2, 3) or len(rows) == 0:
        raise DynamicSaeError(f"rows: expected floats [rows, width] or [examples, tokens, width], or a path; got "
                              f"{name or type(rows)} {list(getattr(rows, 'shape', []))}")
    size = max(1, PIECE_BYTES // (int(np.prod(rows.shape[1:])) * 4))
    with ActivationWriter(directory, dtype=STORED[name], overwrite=True) as writer:
        for start in range(0, len(rows), size):
            writer.add(rows[start : start + size])


def check_same(rows: Any, directory: pathlib.Path) -> None:
    """Raises if rows in memory are not those that a run has been started with."""
    again = directory.with_name(directory.name + ".again")
    try:
        write_rows(rows, again)
        same = (again / "index.json").read_bytes() == (directory / "index.json").read_bytes()  # with checksums of the shards
    finally:
        shutil.rmtree(again, ignore_errors=True)
    if not same:
        raise DynamicSaeError(f"{directory}: the run was started with other rows than those given now; give the "
                              "same, or another run=")


def follow(lines: Generator[str, None, None], progress: bool, directory: pathlib.Path) -> None:
    """Shows the lines of a program until it ends."""
    notebook = in_notebook()
    width = 0  # of the progress that a notebook shows, which the next line replaces
    try:
        with contextlib.closing(lines):
            for line in lines:
                if not progress or line.startswith("error:"):  # an error is raised
                    continue
                moving = notebook and bool(PROGRESS.match(line))
                text = "\r" + line.ljust(width) if moving else "\n" * bool(width) + line
                print(text, end="" if moving else "\n", flush=True)
                width = len(line) if moving else 0
    except KeyboardInterrupt:
        print(f"\nstopped; the same call with resume=True continues {directory} from its last checkpoint", flush=True)
        raise


def in_notebook() -> bool:
    """Whether the output is that of a notebook's cell, where a line can be replaced."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return type(shell).__name__ == "ZMQInteractiveShell"
