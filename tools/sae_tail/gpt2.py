"""GPT-2."""

from sae_export import ExportError

from . import layers
from .family import Decoder, Plan
from .graph import Graph


class Gpt2(Decoder):
    def check(self, plan: Plan) -> None:
        super().check(plan)
        if self.config.add_cross_attention:
            raise ExportError("a model with cross-attention needs more than its own hidden states")

    def block(self, graph: Graph, x: str, number: int) -> str:
        block = self.tower.h[number]
        count = self.config.num_attention_heads
        heads = layers.Heads(count, self.width // count, self.scaling(number), causal=True)
        normed = layers.layer_norm(graph, x, block.ln_1, "attention_norm")
        weights, biases = (p.split(self.width, dim=-1) for p in (block.attn.c_attn.weight, block.attn.c_attn.bias))
        q, k, v = (
            layers.split_heads(graph, layers.matrix(graph, normed, weight, bias, name), count, heads.size)
            for weight, bias, name in zip(weights, biases, ("query", "key", "value"), strict=True)
        )
        attended = layers.attention(graph, q, k, v, heads)
        x = graph.op("Add", x, layers.dense(graph, attended, block.attn.c_proj, "attention_output"))
        normed = layers.layer_norm(graph, x, block.ln_2, "mlp_norm")
        inner = layers.dense(graph, normed, block.mlp.c_fc, "intermediate")
        inner = layers.activation(graph, inner, self.config.activation_function)
        return graph.op("Add", x, layers.dense(graph, inner, block.mlp.c_proj, "output"))

    def scaling(self, number: int) -> float:
        """Of the scores of a block."""
        scale = (self.width // self.config.num_attention_heads) ** -0.5 if self.config.scale_attn_weights else 1.0
        return scale / (number + 1) if self.config.scale_attn_by_inverse_layer_idx else scale

    def final_norm(self, graph: Graph, x: str) -> str:
        return layers.layer_norm(graph, x, self.tower.ln_f, "norm")
