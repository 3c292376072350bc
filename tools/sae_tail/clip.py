"""CLIP's vision tower."""

import math

import torch

from sae_export import ExportError, Inputs
from sae_export.states import features

from . import layers
from .family import Encoder, Plan, class_token
from .graph import Graph


class Clip(Encoder):
    """The projected embedding of an image; without a projection (CLIPVisionModel), the normed class token."""

    modality = "vision"

    def find_tower(self) -> torch.nn.Module:
        return getattr(self.model, "vision_model", self.model)

    @property
    def longest(self) -> int:
        return (self.config.image_size // self.config.patch_size) ** 2 + 1

    def check(self, plan: Plan) -> None:
        if plan.head is not None and not hasattr(self.model, "logit_scale"):
            raise ExportError("--class-texts needs a model with a text tower, not a vision tower alone")

    def scale(self) -> float:
        return math.exp(self.model.logit_scale.item())

    def block(self, graph: Graph, x: str, number: int) -> str:
        block = self.tower.encoder.layers[number]
        own, count = block.self_attn, self.config.num_attention_heads
        heads = layers.Heads(count, self.width // count, scale=(self.width // count) ** -0.5)
        normed = layers.layer_norm(graph, x, block.layer_norm1, "attention_norm")
        projected = ((own.q_proj, "query"), (own.k_proj, "key"), (own.v_proj, "value"))
        q, k, v = (
            layers.split_heads(graph, layers.dense(graph, normed, part, name), count, heads.size)
            for part, name in projected
        )
        attended = layers.attention(graph, q, k, v, heads)
        x = graph.op("Add", x, layers.dense(graph, attended, own.out_proj, "attention_output"))
        normed = layers.layer_norm(graph, x, block.layer_norm2, "mlp_norm")
        inner = layers.dense(graph, normed, block.mlp.fc1, "intermediate")
        inner = layers.activation(graph, inner, self.config.hidden_act)
        return graph.op("Add", x, layers.dense(graph, inner, block.mlp.fc2, "output"))

    def embedding(self, graph: Graph, x: str, plan: Plan) -> tuple[str, int]:
        x = layers.layer_norm(graph, class_token(graph, x), self.tower.post_layernorm, "norm", axis=1)
        projection = getattr(self.model, "visual_projection", None)
        if projection is None:
            return x, self.width
        return layers.dense(graph, x, projection, "projection"), projection.weight.shape[0]

    def sample(self, documents: int, tokens: int, generator: torch.Generator) -> Inputs:
        shape = (documents, self.config.num_channels, self.config.image_size, self.config.image_size)
        return {"pixel_values": torch.randn(shape, generator=generator).to(self.model.device)}

    def embed(self, inputs: Inputs, plan: Plan) -> tuple[torch.Tensor, torch.Tensor]:
        hidden = self.tower(**inputs, output_hidden_states=True).hidden_states[plan.layer]
        if hasattr(self.model, "get_image_features"):
            return hidden, features(self.model, inputs)
        output = self.model(**inputs)
        return hidden, getattr(output, "image_embeds", output.get("pooler_output"))
