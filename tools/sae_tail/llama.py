"""Decoders with RMSNorm, rotary positions, grouped queries and a gated MLP: Llama, Mistral and Qwen2."""

import torch

from sae_export import ExportError

from . import layers
from .family import Decoder, Plan
from .graph import Graph

FIXED_ROTARY = ("default", "linear", "llama3", "yarn")  # types whose angles do not depend on a document's length


class Llama(Decoder):
    def check(self, plan: Plan) -> None:
        super().check(plan)
        kind = getattr(self.tower.rotary_emb, "rope_type", "default")
        if kind not in FIXED_ROTARY:
            raise ExportError(f"rotary positions of type {kind} are not supported; known: {', '.join(FIXED_ROTARY)}")
        window = getattr(self.config, "sliding_window", None)
        if window is not None and plan.context > window:
            raise ExportError(f"the model attends to {window} tokens at most; set --context to no more")

    def rotary_tables(self, graph: Graph) -> tuple[str, str]:
        """cos and sin [1, t, 1, size]."""
        if "cos" not in graph.constants:
            device = self.model.device
            positions = torch.arange(graph.context, device=device)[None]
            tables = self.tower.rotary_emb(torch.zeros(1, device=device), positions)
            for name, table in zip(("cos", "sin"), tables, strict=True):
                graph.constants[name] = graph.table(table[:, :, None], f"/rotary_{name}")
        return graph.cut(graph.constants["cos"], 1), graph.cut(graph.constants["sin"], 1)

    def rotate(self, graph: Graph, x: str, size: int) -> str:
        """x [b, t, heads, size], turned by the angles of its positions."""
        cos, sin = self.rotary_tables(graph)
        first, second = graph.slice(x, 3, 0, size // 2), graph.slice(x, 3, size // 2, size)
        turned = graph.op("Concat", graph.op("Neg", second), first, axis=3)
        return graph.op("Add", graph.op("Mul", x, cos), graph.op("Mul", turned, sin))

    def block(self, graph: Graph, x: str, number: int) -> str:
        block = self.tower.layers[number]
        own, mlp = block.self_attn, block.mlp
        heads = layers.Heads(
            self.config.num_attention_heads, own.head_dim, own.scaling, self.config.num_key_value_heads, causal=True
        )
        normed = layers.rms_norm(graph, x, block.input_layernorm, "attention_norm")
        projected = ((own.q_proj, "query", heads.count), (own.k_proj, "key", heads.groups), (own.v_proj, "value", heads.groups))
        q, k, v = (
            layers.split_heads(graph, layers.dense(graph, normed, part, name), count, heads.size)
            for part, name, count in projected
        )
        q, k = self.rotate(graph, q, heads.size), self.rotate(graph, k, heads.size)
        attended = layers.attention(graph, q, k, v, heads)
        x = graph.op("Add", x, layers.dense(graph, attended, own.o_proj, "attention_output"))
        normed = layers.rms_norm(graph, x, block.post_attention_layernorm, "mlp_norm")
        gate = layers.activation(graph, layers.dense(graph, normed, mlp.gate_proj, "gate"), self.config.hidden_act)
        inner = graph.op("Mul", gate, layers.dense(graph, normed, mlp.up_proj, "up"))
        return graph.op("Add", x, layers.dense(graph, inner, mlp.down_proj, "down"))

    def final_norm(self, graph: Graph, x: str) -> str:
        return layers.rms_norm(graph, x, self.tower.norm, "norm")
