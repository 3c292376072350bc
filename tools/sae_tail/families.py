"""The families of models that have a tail, by the `model_type` in their config."""

from sae_export import ExportError

from .bert import Bert, DistilBert, Roberta
from .clip import Clip
from .family import Family
from .gpt2 import Gpt2
from .llama import Llama

FAMILIES: dict[str, type[Family]] = {
    "bert": Bert,
    "clip": Clip,
    "clip_vision_model": Clip,
    "distilbert": DistilBert,
    "gpt2": Gpt2,
    "llama": Llama,
    "mistral": Llama,
    "qwen2": Llama,
    "roberta": Roberta,
    "xlm-roberta": Roberta,
}


def find_family(model_type: str) -> type[Family]:
    if model_type not in FAMILIES:
        raise ExportError(f"models of type {model_type} have no tail yet; known types: {', '.join(FAMILIES)}")
    return FAMILIES[model_type]
