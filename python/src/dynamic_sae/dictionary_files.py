"""The files of :mod:`dynamic_sae.dictionary_learning`, read and checked.

What is missing, unexpected, of another shape or not finite is an error that says where, and what to do. ``ae.pt`` is a pickle:
torch reads it with ``weights_only=True``, which makes tensors and containers, and runs no code of the file.
"""

import contextlib
import json
import os
import pathlib
import pickle
import tempfile
from collections.abc import Iterator
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from .errors import DynamicSaeError

WEIGHTS, CONFIG = "ae.pt", "config.json"
SAELENS_WEIGHTS, SAELENS_CONFIG = "sae_weights.safetensors", "cfg.json"

LINEAR = {"encoder.weight": "Md", "encoder.bias": "M", "decoder.weight": "dM"}
TOPK = {"k": "", "threshold": "", **LINEAR, "b_dec": "d"}
MATRICES = {"W_enc": "dM", "b_enc": "M", "W_dec": "Md", "b_dec": "d"}
# Tensors of each class; in shapes, M are the latents, d is the width, G the groups, and nothing is a scalar.
CLASSES = {
    "AutoEncoder": {"bias": "d", **LINEAR},
    "AutoEncoderNew": {**LINEAR, "decoder.bias": "d"},
    "GatedAutoEncoder": {
        "decoder_bias": "d", "encoder.weight": "Md", "r_mag": "M", "gate_bias": "M", "mag_bias": "M", "decoder.weight": "dM"
    },
    "AutoEncoderTopK": TOPK,
    "BatchTopKSAE": TOPK,
    "MatryoshkaBatchTopKSAE": {"k": "", "threshold": "", "group_sizes": "G", **MATRICES},
    "JumpReluAutoEncoder": {**MATRICES, "threshold": "M"},
}

Tensors = dict[str, torch.Tensor]
Object = dict[str, Any]


def recognises(path: str | pathlib.Path) -> bool:
    """Whether a directory is one of dictionary_learning."""
    return (pathlib.Path(path) / WEIGHTS).is_file()


def read_json(path: pathlib.Path) -> Object:
    """The object in a JSON file."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DynamicSaeError(f"{path}: it cannot be read ({error.strerror}); copy the whole directory") from None
    except ValueError as error:
        raise DynamicSaeError(f"{path}: not valid JSON ({error}); copy the directory again") from None
    if not isinstance(found, dict):
        raise DynamicSaeError(f"{path}: not a JSON object; copy the directory again")
    return found


def write_json(path: pathlib.Path, content: Object) -> None:
    """Writes a JSON file."""
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def read_config(path: pathlib.Path) -> tuple[str, Object]:
    """``trainer.dict_class`` of config.json, and ``trainer``."""
    trainer = read_json(path).get("trainer")
    if not isinstance(trainer, dict) or "dict_class" not in trainer:
        raise DynamicSaeError(f'{path}: key "trainer.dict_class" is missing; this is no config.json of dictionary_learning')
    name = trainer["dict_class"]
    if name not in CLASSES:
        raise DynamicSaeError(f'{path}: key "trainer.dict_class" is "{name}", which is not known here; known are '
                              f'{", ".join(CLASSES)}')
    return name, trainer


def read_state(path: pathlib.Path, name: str) -> Tensors:
    """The tensors of ae.pt, held to the class. No code in the file is run."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise DynamicSaeError(f"{path}: it cannot be read ({error.strerror}); copy the whole directory") from None
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError, AttributeError, IndexError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise DynamicSaeError(f"{path}: not a state dict of plain tensors, and nothing else is unpickled here ({reason}); save "
                              "it again with torch.save(dictionary.state_dict(), PATH)") from None
    if not isinstance(state, dict):
        raise DynamicSaeError(f"{path}: it holds a {type(state).__name__}; save it again with "
                              "torch.save(dictionary.state_dict(), PATH)")
    return held_to(path, state, CLASSES[name], f'"trainer.dict_class" {name}')


def held_to(path: pathlib.Path, state: Object, layout: dict[str, str], what: str) -> Tensors:
    """The tensors, if they are those of the layout, of shapes that fit, and finite."""
    sizes: dict[str, int] = {}
    for key, shape in layout.items():
        if key not in state:
            raise DynamicSaeError(f'{path}: tensor "{key}" is missing, though {what} asks for it; save the dictionary again')
        found = torch.as_tensor(state[key])
        fits = found.ndim == len(shape) and all(sizes.setdefault(axis, n) == n for axis, n in zip(shape, found.shape))
        if not fits or found.is_complex():
            known = ", ".join(f"{axis} = {n}" for axis, n in sizes.items())
            raise DynamicSaeError(f'{path}: tensor "{key}" is {list(found.shape)}; {what} asks for [{", ".join(shape)}] with '
                                  f"{known}; save the dictionary again")
        if not bool(torch.isfinite(found).all()):
            raise DynamicSaeError(f'{path}: tensor "{key}" has NaN or infinity; train the dictionary again with a smaller lr')
    strangers = sorted(set(map(str, state)) - set(layout))
    if strangers:
        raise DynamicSaeError(f'{path}: tensor "{strangers[0]}" is not part of {what}; what it would change is not known')
    return {key: torch.as_tensor(state[key]) for key in layout}


def checked_k(source: pathlib.Path, trainer: Object, state: Tensors) -> int:
    """k, which ae.pt and config.json must agree on."""
    k, total = int(state["k"]), len(state["encoder.bias"] if "encoder.bias" in state else state["b_enc"])
    if trainer.get("k", k) != k:
        raise DynamicSaeError(f'{source / CONFIG}: key "trainer.k" is {trainer["k"]}, but {WEIGHTS} has k = {k}; correct the '
                              "one that is wrong")
    if not 1 <= k <= total:
        raise DynamicSaeError(f'{source / WEIGHTS}: tensor "k" is {k}; it must lie between 1 and the {total} latents that '
                              "there are")
    return k


def read_saelens_config(path: pathlib.Path) -> Object:
    """``cfg.json`` of a dictionary in SAELens' format that dictionary_learning can hold."""
    cfg = read_json(path)
    architecture = cfg.get("architecture")
    if architecture == "sparsemax":
        raise DynamicSaeError(f'{path}: key "architecture" is "sparsemax", and dictionary_learning has no class that selects '
                              "latents like that; export the nearest that it holds with --approximate topk or jumprelu")
    if architecture not in ("standard", "topk", "jumprelu", "gated"):
        raise DynamicSaeError(f'{path}: key "architecture" is {architecture!r}; dictionary_learning has classes for standard, '
                              "topk, jumprelu and gated")
    for key in ("normalize_activations", "reshape_activations"):
        if cfg.get(key, "none") != "none":
            raise DynamicSaeError(f'{path}: key "{key}" is "{cfg[key]}", and dictionary_learning takes rows as they are; fold '
                                  "it in with SAELens, and save it again")
    for key in ("d_in", "d_sae") + (("k",) if architecture == "topk" else ()):
        if not isinstance(cfg.get(key), int) or cfg[key] < 1:
            raise DynamicSaeError(f'{path}: key "{key}" is {cfg.get(key)!r}; a whole number above 0 is needed')
    return cfg


def read_saelens_tensors(path: pathlib.Path, cfg: Object) -> Tensors:
    """The tensors of ``sae_weights.safetensors`` in float64, held to cfg.json."""
    if not path.is_file():
        raise DynamicSaeError(f"{path}: there is no such file; copy the whole directory")
    try:
        state = load_file(path)
    except (SafetensorError, OSError) as error:
        raise DynamicSaeError(f"{path}: not a safetensors file that can be read ({error}); copy the directory again") from None
    architecture = cfg["architecture"]
    layout = {key: shape for key, shape in MATRICES.items() if not (architecture == "gated" and key == "b_enc")}
    layout |= {"jumprelu": {"threshold": "M"}, "gated": {"b_gate": "M", "r_mag": "M", "b_mag": "M"}}.get(architecture, {})
    found = held_to(path, state, layout, f'"architecture" {architecture}')
    if list(found["W_enc"].shape) != [cfg["d_in"], cfg["d_sae"]]:
        raise DynamicSaeError(f'{path}: tensor "W_enc" is {list(found["W_enc"].shape)}; {SAELENS_CONFIG} says d_in = '
                              f'{cfg["d_in"]} and d_sae = {cfg["d_sae"]}; save the dictionary again')
    return {key: values.to(torch.float64) for key, values in found.items()}


@contextlib.contextmanager
def whole(target: pathlib.Path) -> Iterator[pathlib.Path]:
    """A directory to write into, which gets the name ``target`` when all is written: whole or absent."""
    check_free(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as staging:
        made = pathlib.Path(staging) / "made"
        made.mkdir()
        yield made
        os.replace(made, target)


def check_free(target: pathlib.Path) -> None:
    """Raises unless there is nothing at ``target``, or an empty directory."""
    if target.is_dir() and not any(target.iterdir()):
        return
    if target.exists() or target.is_symlink():
        raise DynamicSaeError(f"{target}: it is there already, and nothing is overwritten; name a new directory")
