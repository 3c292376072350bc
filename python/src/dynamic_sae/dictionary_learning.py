"""Dictionaries of dictionary_learning (``ae.pt``, ``config.json``) to and from SAELens' format, which sae-eval reads and writes.

``ae.pt`` is a pickle. torch reads it with ``weights_only=True``, which runs no code of the file, and writes plain tensors.
sae-eval opens no pickles, so this is the one step that needs Python: ``python -m dynamic_sae import DIR RUN`` and
``python -m dynamic_sae export --to dictionary_learning RUN DIR`` go through here.

What dictionary_learning 0.1.0 computes of rows x, with its names of tensors:

    AutoEncoder              a = relu((x - bias) encoder)             x_hat = a decoder + bias, columns of length one
    AutoEncoderNew           a = relu(x encoder)                      x_hat = a decoder + its bias
    GatedAutoEncoder         a = relu(e^r_mag e + mag_bias) (e + gate_bias > 0),   e = (x - decoder_bias) encoder
    AutoEncoderTopK          a = the k largest of relu((x - b_dec) encoder)        a threshold is not used by encode
    BatchTopKSAE             a = relu((x - b_dec) encoder), where it is above threshold
    MatryoshkaBatchTopKSAE   the same
    JumpReluAutoEncoder      a = relu(x W_enc + b_enc), where it is above threshold [M]      b_dec is not subtracted from x
"""

import pathlib
import re
from typing import Any

import torch
from safetensors.torch import save_file

from .dictionary_files import (
    CLASSES,
    CONFIG,
    SAELENS_CONFIG,
    SAELENS_WEIGHTS,
    WEIGHTS,
    Object,
    Tensors,
    check_free,
    checked_k,
    read_config,
    read_saelens_config,
    read_saelens_tensors,
    read_state,
    recognises,
    whole,
    write_json,
)
from .errors import DynamicSaeError

__all__ = ["CONFIG", "WEIGHTS", "check_free", "from_saelens", "read_config", "recognises", "to_saelens", "write_json"]

SAELENS_VERSION = "6.54.12"
WITH_K = ("AutoEncoderTopK", "BatchTopKSAE", "MatryoshkaBatchTopKSAE")
SEES_X = ("AutoEncoderNew", "JumpReluAutoEncoder")  # they encode x, the others x - b_dec
# Names of SAELens for those of dictionary_learning; the weights of torch.nn.Linear are transposed.
NAMES = {"encoder.weight": "W_enc", "decoder.weight": "W_dec", "encoder.bias": "b_enc"}
NAMES |= {"gate_bias": "b_gate", "mag_bias": "b_mag"}
NAMES |= {"bias": "b_dec", "decoder.bias": "b_dec", "decoder_bias": "b_dec"}
TRAINERS = {
    "AutoEncoder": "StandardTrainer", "AutoEncoderNew": "StandardTrainerAprilUpdate", "GatedAutoEncoder": "GatedSAETrainer",
    "AutoEncoderTopK": "TopKTrainer", "BatchTopKSAE": "BatchTopKTrainer", "JumpReluAutoEncoder": "JumpReluTrainer",
    "MatryoshkaBatchTopKSAE": "MatryoshkaBatchTopKTrainer",
}


def to_saelens(source: str | pathlib.Path, target: str | pathlib.Path, keep_k: bool = False) -> list[str]:
    """Writes a dictionary of dictionary_learning in SAELens' format.

    Args:
        source: the directory with ``ae.pt`` and ``config.json``.
        target: the directory to write: a new or an empty one.
        keep_k: write BatchTopK as the class that SAELens trains, which has k, and not as JumpReLU, which it uses.

    Returns:
        what the user should know, a sentence each.

    Raises:
        DynamicSaeError: if the files are not those of a dictionary, or target is taken.
    """
    source, target = pathlib.Path(source), pathlib.Path(target)
    name, trainer = read_config(source / CONFIG)
    state = read_state(source / WEIGHTS, name)
    k = checked_k(source, trainer, state) if name in WITH_K else None
    tensors = {NAMES.get(key, key): turned(key, values) for key, values in state.items()}
    tensors = {key: values.to(torch.float64) for key, values in tensors.items()}
    notes: list[str] = []
    if name == "AutoEncoder":
        unit_rows(tensors)
    cfg, tensors = of_class(name, k, tensors, keep_k, notes)
    cfg |= {
        "d_in": tensors["W_enc"].shape[0], "d_sae": tensors["W_enc"].shape[1], "dtype": "float32", "device": "cpu",
        "apply_b_dec_to_input": name not in SEES_X, "normalize_activations": "none", "reshape_activations": "none",
        "metadata": metadata_of(trainer),
    }
    with whole(target) as directory:
        write_json(directory / SAELENS_CONFIG, cfg)
        save_file({key: single(values) for key, values in tensors.items()}, directory / SAELENS_WEIGHTS, {"format": "pt"})
    return notes


def of_class(name: str, k: int | None, tensors: Tensors, keep_k: bool, notes: list[str]) -> tuple[Object, Tensors]:
    """Keys of SAELens' class for a class of dictionary_learning, and its tensors."""
    tensors = dict(tensors)
    tensors.pop("k", None)
    sizes = tensors.pop("group_sizes", None)
    top_k = {"architecture": "topk", "k": k, "rescale_acts_by_decoder_norm": False}
    if name in ("AutoEncoder", "AutoEncoderNew"):
        return {"architecture": "standard"}, tensors
    if name == "GatedAutoEncoder":
        return {"architecture": "gated"}, tensors
    if name == "JumpReluAutoEncoder":
        return {"architecture": "jumprelu"}, tensors
    threshold = tensors.pop("threshold")
    if name == "AutoEncoderTopK":
        return top_k, tensors
    if threshold < 0:
        notes.append(f"threshold is {threshold.item():g}: training has not measured it yet, so each row keeps its {k} largest "
                     "latents; dictionary_learning's encode would keep all that are positive")
        return top_k, tensors
    if not keep_k:
        return {"architecture": "jumprelu"}, tensors | {"threshold": threshold.expand(tensors["b_enc"].shape)}
    tensors |= {"topk_threshold": threshold}
    if sizes is None:
        return top_k | {"architecture": "batchtopk"}, tensors
    widths = [int(width) for width in sizes.cumsum(0)]
    return top_k | {"architecture": "matryoshka_batchtopk", "matryoshka_widths": widths}, tensors


def metadata_of(trainer: Object) -> Object:
    """What SAELens calls metadata, as far as ``trainer`` of config.json says it."""
    metadata: Object = {"sae_lens_version": SAELENS_VERSION, "sae_lens_training_version": None}
    metadata |= {"model_name": trainer.get("lm_name"), "hook_name": None}
    place = re.fullmatch(r"resid_post_layer_(\d+)", str(trainer.get("submodule_name")))
    if place:
        metadata["hook_name"] = f"blocks.{place[1]}.hook_resid_post"
    return metadata


def from_saelens(
    source: str | pathlib.Path, target: str | pathlib.Path, k: int | None = None, widths: list[int] | None = None
) -> None:
    """Writes a dictionary in SAELens' format as one of dictionary_learning.

    Args:
        source: the directory with ``cfg.json`` and ``sae_weights.safetensors``: standard, topk, jumprelu or gated.
        target: the directory to write: a new or an empty one.
        k: of a jumprelu with one threshold that is BatchTopK in truth: its k.
        widths: of one that is Matryoshka: how many latents its dictionaries have, from the smallest to the largest.

    Raises:
        DynamicSaeError: if the files are not those of a dictionary, dictionary_learning has no class for it, or target is taken.
    """
    source, target = pathlib.Path(source), pathlib.Path(target)
    cfg = read_saelens_config(source / SAELENS_CONFIG)
    tensors = read_saelens_tensors(source / SAELENS_WEIGHTS, cfg)
    if not cfg.get("apply_b_dec_to_input", True):
        see_centred(tensors)
    if cfg.get("rescale_acts_by_decoder_norm", False):
        unit_rows(tensors)
    name, state = to_class(source / SAELENS_CONFIG, cfg, tensors, k, widths)
    trainer = trainer_of(name, cfg, state)
    layout = CLASSES[name]
    saved = {key: turned(key, state[key]) for key in layout}
    saved = {key: whole_number(v) if key in ("k", "group_sizes") else single(v) for key, v in saved.items()}
    with whole(target) as directory:
        write_json(directory / CONFIG, {"trainer": trainer})
        torch.save(saved, directory / WEIGHTS)


def to_class(path: pathlib.Path, cfg: Object, tensors: Tensors, k: int | None, widths: list[int] | None) -> tuple[str, Tensors]:
    """The class of dictionary_learning for one of SAELens, and its tensors by dictionary_learning's names."""
    architecture = cfg["architecture"]
    if architecture == "topk":
        own = {"k": torch.tensor(int(cfg["k"])), "threshold": torch.tensor(-1.0)}
        return "AutoEncoderTopK", linear(tensors) | own | {"b_dec": tensors["b_dec"]}
    if architecture == "jumprelu" and k is not None:
        return of_batch(path, tensors, k, widths)
    # What remains does the same if a latent is scaled: SAEBench asks for decoders of rows of length one, AutoEncoder makes them.
    unit_rows(tensors)
    if architecture == "jumprelu":
        see_rows(tensors)
        return "JumpReluAutoEncoder", tensors
    if architecture == "gated":
        biases = {"decoder_bias": tensors["b_dec"], "gate_bias": tensors["b_gate"], "mag_bias": tensors["b_mag"]}
        return "GatedAutoEncoder", linear(tensors) | biases | {"r_mag": tensors["r_mag"]}
    if bool((tensors["W_dec"] == 0).all(dim=1).any()):  # AutoEncoder divides by the length of each row at loading
        see_rows(tensors)
        return "AutoEncoderNew", linear(tensors) | {"decoder.bias": tensors["b_dec"]}
    return "AutoEncoder", linear(tensors) | {"bias": tensors["b_dec"]}


def of_batch(path: pathlib.Path, tensors: Tensors, k: int, widths: list[int] | None) -> tuple[str, Tensors]:
    """BatchTopK, or Matryoshka if there are widths."""
    threshold = tensors["threshold"]
    if not bool((threshold == threshold[0]).all()):
        raise DynamicSaeError(f"{path}: k was given, but its latents have thresholds of their own, so it is no BatchTopK; "
                              "leave k out")
    own = {"k": torch.tensor(k), "threshold": threshold[0].clamp(min=0), "b_dec": tensors["b_dec"]}
    if widths is None:
        return "BatchTopKSAE", linear(tensors) | own
    total = tensors["b_enc"].shape[0]
    ends = sorted({0, *widths, total})
    if ends[0] < 0 or ends[-1] > total:
        raise DynamicSaeError(f"{path}: widths {widths} do not lie between 1 and the {total} latents that there are")
    sizes = torch.tensor([end - start for start, end in zip(ends, ends[1:])])
    return "MatryoshkaBatchTopKSAE", tensors | own | {"group_sizes": sizes}


def linear(tensors: Tensors) -> Tensors:
    """Encoder and decoder by the names of torch.nn.Linear, not yet transposed."""
    found = {"encoder.weight": tensors["W_enc"], "decoder.weight": tensors["W_dec"]}
    return found | ({"encoder.bias": tensors["b_enc"]} if "b_enc" in tensors else {})


def trainer_of(name: str, cfg: Object, state: Tensors) -> Object:
    """``trainer`` of config.json: what dictionary_learning and SAEBench read; null where it is not known."""
    metadata = cfg.get("metadata") or {}
    hook = str(metadata.get("hook_name"))
    layer = re.match(r"blocks\.(\d+)\.", hook)
    place = re.fullmatch(r"blocks\.(\d+)\.hook_resid_post", hook)
    trainer: Object = {
        "trainer_class": TRAINERS[name], "dict_class": name, "activation_dim": int(cfg["d_in"]), "dict_size": int(cfg["d_sae"]),
        "lm_name": metadata.get("model_name"), "layer": int(layer[1]) if layer else None,
        "submodule_name": f"resid_post_layer_{place[1]}" if place else None, "device": "cpu",
    }
    if name in WITH_K:
        trainer["k"] = int(state["k"])
    if "group_sizes" in state:
        trainer["group_sizes"] = state["group_sizes"].tolist()
    return trainer


def unit_rows(tensors: Tensors) -> None:
    """Rows of W_dec at length one; latents grow by what the rows have lost. Rows of zeros stay."""
    lengths = tensors["W_dec"].norm(dim=1)
    lengths = torch.where(lengths > 0, lengths, 1.0)
    tensors["W_dec"] = tensors["W_dec"] / lengths[:, None]
    if "r_mag" in tensors:  # the gate stays as it is
        tensors["r_mag"] = tensors["r_mag"] + lengths.log()
        tensors["b_mag"] = tensors["b_mag"] * lengths
        return
    tensors["W_enc"] = tensors["W_enc"] * lengths
    for name in ("b_enc", "threshold"):
        if name in tensors:
            tensors[name] = tensors[name] * lengths


def see_rows(tensors: Tensors) -> None:
    """Makes an encoder of x - b_dec one of x."""
    shift_biases(tensors, -(tensors["b_dec"] @ tensors["W_enc"]))


def see_centred(tensors: Tensors) -> None:
    """Makes an encoder of x one of x - b_dec."""
    shift_biases(tensors, tensors["b_dec"] @ tensors["W_enc"])


def shift_biases(tensors: Tensors, shift: torch.Tensor) -> None:
    """Adds ``shift [M]`` to the scores."""
    for name in ("b_enc", "b_gate"):
        if name in tensors:
            tensors[name] = tensors[name] + shift
    if "r_mag" in tensors:
        tensors["b_mag"] = tensors["b_mag"] + tensors["r_mag"].exp() * shift


def turned(key: str, values: torch.Tensor) -> torch.Tensor:
    """A tensor in the other program's order of axes: those of torch.nn.Linear are transposed."""
    return values.T if key in ("encoder.weight", "decoder.weight") else values


def single(values: torch.Tensor) -> torch.Tensor:
    """float32, in memory of its own."""
    return values.to(torch.float32).clone().contiguous()


def whole_number(values: torch.Tensor) -> torch.Tensor:
    """As dictionary_learning keeps k and the sizes of groups."""
    return values.to(torch.int if values.ndim == 0 else torch.int64)
