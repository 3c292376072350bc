"""A saved model on disk: ``cfg.json``, ``sae.safetensors`` and, if it has not been copied without them, ``BLAKE3SUMS``.

Nothing is guessed: a tensor that is missing, unexpected, of another shape or type, or that has NaN or infinity, is an error.
Nothing is ever unpickled.
"""

import dataclasses
import json
import pathlib
import re
from typing import Any

import numpy as np

from .errors import DynamicSaeError

FORMAT, VERSION = "sae-attention", 3
CONFIG, WEIGHTS, SUMS = "cfg.json", "sae.safetensors", "BLAKE3SUMS"
PICKLES = (".pt", ".pth", ".pkl", ".bin")

ENCODER = {"W_enc": "Md", "b_enc": "M"}
THRESHOLDS = {"topk": {}, "batch_topk": {"threshold": "1"}, "matryoshka": {"threshold": "1"}, "jumprelu": {"threshold": "M"}}
# Tensors of each architecture beside those that every model may have; in shapes, M are the latents and d is the width.
OWN = {name: ENCODER | more for name, more in THRESHOLDS.items()} | {
    "attention": {"b_enc": "M"},
    "attention_relu": {"b_enc": "M"},
    "mlp_sparsemax": ENCODER,
    "relu": ENCODER,
    "gated": {"W_enc": "Md", "b_gate": "M", "r_mag": "M", "b_mag": "M"},
}
# The switch of cfg.json that says whether a model has a tensor; a tensor that is not named here is always there.
SWITCHES = {"W_Q": "query_projection", "W_K": "key_projection", "W_V": "value_projection", "b_dec": "pre_bias"}
SWITCHES |= {"b_enc": "encoder_bias", "b_gate": "encoder_bias"}
COMMON = {"W_dec": "Md", "W_Q": "dd", "W_K": "dd", "W_V": "dd", "b_dec": "d"}


@dataclasses.dataclass(frozen=True)
class Config:
    """``model`` of ``cfg.json``: what a model computes. docs/TRAINING.md has the equations."""

    d_in: int
    """Width d of the activations."""
    n_latents: int
    """Number of latents M."""
    architecture: str
    """Name of the architecture, for example ``"attention"`` or ``"topk"``."""
    options: dict[str, Any]
    """The architecture's own switches, for example ``{"k": 32}``."""
    scale: float
    """Factor t on the scores."""
    norm_exponent: float
    """p in ``n = s (||x0|| / s)^p``."""
    input_scale: float
    """s."""
    norm_range: float | None
    """R: p holds where ``||x0|| / s`` lies in ``[1/R, R]``; beyond it is 1. None: everywhere."""
    encoder_bias: bool
    """Whether there is a b_enc (of gated: b_gate)."""
    seed: int
    """Seed that the parameters started from."""

    @property
    def refinement(self) -> int:
        """Steps by which inference refines the values of the selected latents."""
        return int(self.options.get("refinement", 0))


def model_directory(path: str | pathlib.Path) -> pathlib.Path:
    """The directory of the saved model that a path means: a run directory, or that of a model itself."""
    path = pathlib.Path(path)
    if not path.exists():
        raise DynamicSaeError(f"{path}: there is no such directory")
    for candidate in (path / "model", path):
        if (candidate / CONFIG).is_file():
            return candidate
    if (path / "config.toml").is_file():
        raise DynamicSaeError(f"{path}: this run has no trained model yet; finish it with sae-train --resume, or make a model of "
                              "a checkpoint with sae-train export")
    if path.suffix in PICKLES or (path.is_dir() and any(entry.suffix in PICKLES for entry in path.iterdir())):
        raise DynamicSaeError(f"{path}: this is a pickle, which is not opened here; make a run of a dictionary_learning directory "
                              "with python -m dynamic_sae import DIR RUN")
    raise DynamicSaeError(f"{path}: neither a run nor a saved model (there is no {CONFIG}); give the directory of a run, such as "
                          "runs/quickstart")


def read(path: str | pathlib.Path) -> tuple[Config, dict[str, np.ndarray]]:
    """The config and the tensors (float32) of a run's model or of a saved model.

    Raises:
        DynamicSaeError: if the files are not whole, or are not those of a model.
    """
    directory = model_directory(path)
    check_sums(directory)
    config, switches = read_config(directory / CONFIG)
    return config, read_tensors(directory / WEIGHTS, config, switches)


def check_sums(directory: pathlib.Path) -> None:
    """Raises if a file is not the one that was saved. A copy without checksums passes."""
    sums = directory / SUMS
    if not sums.is_file():
        return
    from blake3 import blake3

    for line in sums.read_text().splitlines():
        expected, _, name = line.partition("  ")
        if not re.fullmatch("[0-9a-f]{64}", expected) or name not in (CONFIG, WEIGHTS):
            raise DynamicSaeError(f"{sums}: not the checksums of a saved model: {line[:80]!r}; copy the directory again")
        file = directory / name
        if not file.is_file():
            raise DynamicSaeError(f"{file}: it is missing, though {SUMS} names it; copy the directory again")
        if blake3(file.read_bytes()).hexdigest() != expected:
            raise DynamicSaeError(f"{file}: it has been changed or damaged since it was saved (its BLAKE3 checksum is another); "
                                  f"copy the directory again, or delete {SUMS} if you changed the file on purpose")


def read_config(path: pathlib.Path) -> tuple[Config, dict[str, bool]]:
    """``cfg.json``: the config, and the switches that say which tensors there are."""
    try:
        saved = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DynamicSaeError(f"{path}: not valid JSON ({error}); copy the directory again") from None
    if not isinstance(saved, dict) or saved.get("format") != FORMAT:
        kind = ("of SAELens or sparsify, it seems: make a run of it with sae-eval import DIR RUN"
                if isinstance(saved, dict) and ("d_sae" in saved or "num_latents" in saved) else "of another kind")
        raise DynamicSaeError(f'{path}: key "format" is not "{FORMAT}"; this model is {kind}')
    version = saved.get("format_version")
    if version != VERSION:
        newer = isinstance(version, int) and version > VERSION
        remedy = "install a newer dynamic-sae" if newer else "make a run of it with sae-eval import, which reads older versions"
        raise DynamicSaeError(f'{path}: key "format_version" is {version}, this package reads {VERSION}; {remedy}')
    try:
        model = saved["model"]
        options = dict(model["architecture"])
        config = Config(
            d_in=positive(model["d_in"]), n_latents=positive(model["n_latents"]), architecture=options.pop("name"),
            options=options, scale=float(model["scale"]), norm_exponent=float(model["norm_exponent"]),
            input_scale=float(model["input_scale"]), seed=int(saved["seed"]), encoder_bias=bool(model.get("encoder_bias", False)),
            norm_range=None if model.get("norm_range") is None else float(model["norm_range"]),
        )
        switches = {name: bool(model.get(switch, False)) for name, switch in SWITCHES.items()}
    except (KeyError, TypeError, ValueError) as error:
        raise DynamicSaeError(f"{path}: key {error} is missing or has a wrong value; save the model again") from None
    if config.architecture not in OWN:
        raise DynamicSaeError(f'{path}: key "model.architecture.name" is "{config.architecture}"; this package knows '
                              f"{', '.join(OWN)}; install a newer dynamic-sae")
    return config, switches


def positive(value: Any) -> int:
    """A number of latents or columns."""
    if not isinstance(value, int) or value < 1:
        raise ValueError(f"{value}")
    return value


def read_tensors(path: pathlib.Path, config: Config, switches: dict[str, bool]) -> dict[str, np.ndarray]:
    """The tensors of ``sae.safetensors`` by name, held to the config."""
    tensors = safetensors_of(path)
    sizes = {"M": config.n_latents, "d": config.d_in, "1": 1}
    expected = {name: tuple(sizes[axis] for axis in shape) for name, shape in (COMMON | OWN[config.architecture]).items()
                if switches.get(name, True)}
    for name, shape in expected.items():
        if name not in tensors:
            raise DynamicSaeError(f'{path}: tensor "{name}" is missing, though {CONFIG} asks for it; save the model again')
        found = tensors[name]
        if found.dtype != np.float32 or found.shape != shape:
            raise DynamicSaeError(f'{path}: tensor "{name}" is {found.dtype} {list(found.shape)}; {CONFIG} asks for float32 '
                                  f"{list(shape)}; save the model again")
        if not np.isfinite(found).all():
            raise DynamicSaeError(f'{path}: tensor "{name}" has NaN or infinity; train the model again with a smaller lr')
    strangers = sorted(set(tensors) - set(expected))
    if strangers:
        raise DynamicSaeError(f'{path}: tensor "{strangers[0]}" is not part of the model that {CONFIG} describes; save the '
                              "model again")
    return tensors


def safetensors_of(path: pathlib.Path) -> dict[str, np.ndarray]:
    """The tensors of a safetensors file."""
    import safetensors
    import safetensors.numpy

    if not path.is_file():
        raise DynamicSaeError(f"{path}: there is no such file; copy the whole directory")
    try:
        return safetensors.numpy.load_file(path)
    except (safetensors.SafetensorError, KeyError, OSError) as error:
        raise DynamicSaeError(f"{path}: not a safetensors file that can be read ({error}); copy the directory again") from None
