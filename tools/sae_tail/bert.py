"""Text encoders with a norm after each residual connection: BERT, RoBERTa and DistilBERT."""

import torch

from sae_export import ExportError, Inputs

from . import layers
from .family import Encoder, Plan, class_token
from .graph import Graph


class Bert(Encoder):
    def check(self, plan: Plan) -> None:
        if getattr(self.config, "is_decoder", False):
            raise ExportError("the model's config says is_decoder: its attention is causal, which encoders' is not")
        if getattr(self.config, "position_embedding_type", None) not in (None, "absolute"):
            raise ExportError(f"position embeddings of type {self.config.position_embedding_type} are not supported")

    def attend(self, graph: Graph, x: str, parts: tuple[torch.nn.Module, ...]) -> str:
        """Attention by the query, key, value and output projections."""
        count = self.config.num_attention_heads
        heads = layers.Heads(count, self.width // count, scale=(self.width // count) ** -0.5)
        names = zip(parts[:3], ("query", "key", "value"), strict=True)
        projected = (layers.dense(graph, x, part, name) for part, name in names)
        split = [layers.split_heads(graph, each, count, heads.size) for each in projected]
        return layers.dense(graph, layers.attention(graph, *split, heads), parts[3], "attention_output")

    def block(self, graph: Graph, x: str, number: int) -> str:
        block = self.tower.encoder.layer[number]
        own, output = block.attention.self, block.attention.output
        attended = self.attend(graph, x, (own.query, own.key, own.value, output.dense))
        x = layers.layer_norm(graph, graph.op("Add", attended, x), output.LayerNorm, "attention_norm")
        inner = layers.dense(graph, x, block.intermediate.dense, "intermediate")
        inner = layers.activation(graph, inner, self.config.hidden_act)
        inner = layers.dense(graph, inner, block.output.dense, "output")
        return layers.layer_norm(graph, graph.op("Add", inner, x), block.output.LayerNorm, "output_norm")

    def embedding(self, graph: Graph, x: str, plan: Plan) -> tuple[str, int]:
        if plan.pooling == "cls":
            return class_token(graph, x), self.width
        return graph.op("ReduceMean", x, axes=[1], keepdims=0), self.width

    def embed(self, inputs: Inputs, plan: Plan) -> tuple[torch.Tensor, torch.Tensor]:
        output = self.model(**inputs, output_hidden_states=True)
        last = output.last_hidden_state
        return output.hidden_states[plan.layer], last[:, 0] if plan.pooling == "cls" else last.mean(1)


class Roberta(Bert):
    @property
    def longest(self) -> int:
        return self.config.max_position_embeddings - self.config.pad_token_id - 1  # positions begin behind the padding's


class DistilBert(Bert):
    def block(self, graph: Graph, x: str, number: int) -> str:
        block = self.tower.transformer.layer[number]
        own = block.attention
        attended = self.attend(graph, x, (own.q_lin, own.k_lin, own.v_lin, own.out_lin))
        x = layers.layer_norm(graph, graph.op("Add", attended, x), block.sa_layer_norm, "attention_norm")
        inner = layers.activation(graph, layers.dense(graph, x, block.ffn.lin1, "intermediate"), self.config.activation)
        inner = layers.dense(graph, inner, block.ffn.lin2, "output")
        return layers.layer_norm(graph, graph.op("Add", inner, x), block.output_layer_norm, "output_norm")
