"""Tiny random models of every family that has a tail, for test_export_tail.py and write_tails.py."""

import pathlib
from collections.abc import Callable

import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers, processors

transformers.logging.disable_progress_bar()

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "the", "cat", "dog", "tree", "kind", "of", "photo", "this", "is", "plant", "pet"]
VOCABULARY = 60
CONTEXT = 12
SIDE, PATCH = 12, 4
CLASSES = {"cats": "the cat", "dogs": "a dog is a pet", 'trees, "naïve"': "tree of the kind"}
SHAPE = dict(hidden_size=16, num_hidden_layers=3, num_attention_heads=4, intermediate_size=24)
BERT = dict(vocab_size=VOCABULARY, max_position_embeddings=CONTEXT, **SHAPE)
LLAMA = dict(vocab_size=VOCABULARY, max_position_embeddings=CONTEXT, num_key_value_heads=2, **SHAPE)
GPT2 = dict(vocab_size=VOCABULARY, n_positions=CONTEXT, n_embd=16, n_layer=3, n_head=4, bos_token_id=0, eos_token_id=0)
VISION = dict(image_size=SIDE, patch_size=PATCH, **SHAPE)


def randomize(model: torch.nn.Module, seed: int) -> torch.nn.Module:
    """Weights so large that every part of a block matters, and norms and biases that are not 1 and 0."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 0:
                continue  # CLIP's logit_scale
            around = 1.0 if parameter.ndim == 1 and name.endswith("weight") else 0.0
            spread = 0.3 if parameter.ndim == 1 else 1.5 * parameter.shape[-1] ** -0.5
            parameter.copy_(around + spread * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def clip(hidden_act: str) -> transformers.CLIPModel:
    text = dict(vocab_size=VOCABULARY, max_position_embeddings=CONTEXT, bos_token_id=2, eos_token_id=3, **SHAPE)
    vision = VISION | dict(hidden_act=hidden_act, hidden_size=32)
    return transformers.CLIPModel(transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=20))


def llama(**other: object) -> transformers.LlamaForCausalLM:
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**LLAMA | other))


LLAMA3 = {"rope_type": "llama3", "rope_theta": 1e4, "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
LLAMA3["original_max_position_embeddings"] = 8
SCALED = dict(scale_attn_by_inverse_layer_idx=True, activation_function="gelu", n_inner=40)

MODELS: dict[str, Callable[[], torch.nn.Module]] = {
    "bert": lambda: transformers.BertModel(transformers.BertConfig(**BERT)),
    "bert-tanh": lambda: transformers.BertModel(transformers.BertConfig(hidden_act="gelu_new", **BERT)),
    "roberta": lambda: transformers.RobertaModel(transformers.RobertaConfig(**BERT | {"max_position_embeddings": CONTEXT + 2})),
    "distilbert": lambda: transformers.DistilBertModel(
        transformers.DistilBertConfig(
            vocab_size=VOCABULARY, max_position_embeddings=CONTEXT, dim=16, n_layers=3, n_heads=4, hidden_dim=24
        )
    ),
    "clip": lambda: clip("quick_gelu"),
    "clip-gelu": lambda: clip("gelu"),
    "clip-vision": lambda: transformers.CLIPVisionModel(transformers.CLIPVisionConfig(**VISION)),
    "clip-projected": lambda: transformers.CLIPVisionModelWithProjection(
        transformers.CLIPVisionConfig(projection_dim=20, **VISION)
    ),
    "llama": llama,
    "llama-tied": lambda: llama(tie_word_embeddings=True, num_key_value_heads=1, attention_bias=True, mlp_bias=True),
    "llama-wide": lambda: llama(head_dim=6, num_key_value_heads=4, rope_parameters=LLAMA3),
    "mistral": lambda: transformers.MistralForCausalLM(transformers.MistralConfig(**LLAMA, sliding_window=CONTEXT)),
    "qwen2": lambda: transformers.Qwen2ForCausalLM(transformers.Qwen2Config(**LLAMA)),
    "gpt2": lambda: transformers.GPT2LMHeadModel(transformers.GPT2Config(**GPT2)),
    "gpt2-scaled": lambda: transformers.GPT2LMHeadModel(transformers.GPT2Config(**GPT2 | SCALED)),
}


def tokenizer() -> transformers.PreTrainedTokenizerFast:
    own = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    own.pre_tokenizer = pre_tokenizers.Whitespace()
    own.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    named = dict(unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]", pad_token="[PAD]")
    return transformers.PreTrainedTokenizerFast(tokenizer_object=own, model_max_length=CONTEXT, **named)


def save(name: str, directory: pathlib.Path, seed: int = 0) -> torch.nn.Module:
    """Writes a model with a tokenizer, and returns it as it is read back."""
    torch.manual_seed(seed)
    randomize(MODELS[name](), seed).save_pretrained(directory)
    tokenizer().save_pretrained(directory)
    return load(name, directory)


def load(name: str, directory: pathlib.Path) -> torch.nn.Module:
    return type(MODELS[name]()).from_pretrained(directory).eval()


def inputs(name: str, documents: int, tokens: int, seed: int) -> dict[str, torch.Tensor]:
    """Random inputs; images have as many tokens as they have."""
    generator = torch.Generator().manual_seed(seed)
    if name.startswith("clip"):
        return {"pixel_values": torch.randn((documents, 3, SIDE, SIDE), generator=generator)}
    return {"input_ids": torch.randint(4, VOCABULARY, (documents, tokens), generator=generator)}


def states_and_output(name: str, model: torch.nn.Module, given: dict[str, torch.Tensor], pooling: str = "mean"):
    """All hidden states, and the model's own output: logits, or the embedding, not normalised."""
    with torch.no_grad():
        if name in ("clip", "clip-gelu"):
            states = model.vision_model(**given, output_hidden_states=True).hidden_states
            features = model.get_image_features(**given)
            return states, getattr(features, "pooler_output", features)
        output = model(**given, output_hidden_states=True)
    if name == "clip-projected":
        return output.hidden_states, output.image_embeds
    if name == "clip-vision":
        return output.hidden_states, output.pooler_output
    if "logits" in output:
        return output.hidden_states, output.logits
    last = output.last_hidden_state
    return output.hidden_states, last[:, 0] if pooling == "cls" else last.sum(1) / last.shape[1]
