"""What export_tail.py asks of a family of models; encoders and decoders, each with what they have in common."""

from dataclasses import dataclass

import torch
import transformers

from sae_export import ExportError, Inputs

from . import layers
from .graph import Graph

LONGEST_MASK = 4096  # tokens; a mask has the square of it


@dataclass(frozen=True)
class Plan:
    """The tail that is wanted."""

    layer: int  # the hidden state that it begins with; never negative
    context: int
    pooling: str = "mean"
    normalize: bool = False
    head: torch.Tensor | None = None  # [classes, e], zero-shot


class Family:
    """A model of a family: its blocks and its end as nodes of a graph, and in torch to compare with."""

    modality = "text"
    loader: type = transformers.AutoModel

    def __init__(self, model: torch.nn.Module):
        self.model = model
        self.tower = self.find_tower()
        self.config = self.tower.config

    def find_tower(self) -> torch.nn.Module:
        """The part that has the blocks."""
        return self.model

    @property
    def layers(self) -> int:
        return self.config.num_hidden_layers

    @property
    def width(self) -> int:
        return self.config.hidden_size

    @property
    def longest(self) -> int:
        """Tokens of the longest input."""
        return self.config.max_position_embeddings

    def check(self, plan: Plan) -> None:
        """Raises if the model has something that the graph cannot express."""

    def block(self, graph: Graph, x: str, number: int) -> str:
        raise NotImplementedError

    def end(self, graph: Graph, x: str, plan: Plan) -> tuple[str, str, list[str | int]]:
        """What follows the last block: the result, the output's name, its dimensions."""
        raise NotImplementedError

    def sample(self, documents: int, tokens: int, generator: torch.Generator) -> Inputs:
        """Random inputs of the whole model."""
        shape = (documents, tokens)
        ids = torch.randint(self.config.vocab_size, shape, generator=generator).to(self.model.device)
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}

    def reference(self, inputs: Inputs, plan: Plan) -> tuple[torch.Tensor, torch.Tensor]:
        """Hidden state `plan.layer` and the output, both from torch's pass through the whole model."""
        raise NotImplementedError

    def build(self, graph: Graph, plan: Plan) -> tuple[str, str, list[str | int]]:
        self.check(plan)
        x = graph.hidden
        for number in range(plan.layer, self.layers):
            with graph.scope(f"block{number}"):
                x = self.block(graph, x, number)
        with graph.scope("end"):
            return self.end(graph, x, plan)


class Encoder(Family):
    """One embedding per document, or its similarity to class embeddings."""

    def kind(self, plan: Plan) -> str:
        return "encoder" if plan.head is None else "classifier"

    def scale(self) -> float:
        """Of the similarities."""
        return 1.0

    def embedding(self, graph: Graph, x: str, plan: Plan) -> tuple[str, int]:
        """[b, e] from states [b, t, d], and e."""
        raise NotImplementedError

    def embed(self, inputs: Inputs, plan: Plan) -> tuple[torch.Tensor, torch.Tensor]:
        """Hidden state and embedding, by torch."""
        raise NotImplementedError

    def end(self, graph: Graph, x: str, plan: Plan) -> tuple[str, str, list[str | int]]:
        x, width = self.embedding(graph, x, plan)
        if plan.normalize or plan.head is not None:
            x = layers.unit_norm(graph, x, width)
        if plan.head is None:
            return x, "embedding", ["batch", width]
        if plan.head.shape[1] != width:
            raise ExportError(f"class texts have embeddings of width {plan.head.shape[1]}, documents of width {width}")
        x = layers.matrix(graph, x, plan.head.T * self.scale(), None, "head")
        return x, "logits", ["batch", len(plan.head)]

    def reference(self, inputs: Inputs, plan: Plan) -> tuple[torch.Tensor, torch.Tensor]:
        hidden, embedding = self.embed(inputs, plan)
        if plan.normalize or plan.head is not None:
            embedding = torch.nn.functional.normalize(embedding, dim=1)
        if plan.head is None:
            return hidden, embedding
        return hidden, embedding @ plan.head.to(embedding.device).T * self.scale()


def class_token(graph: Graph, x: str) -> str:
    """[b, d], of position 0."""
    return graph.op("Squeeze", graph.slice(x, 1, 0, 1), graph.integers(1))


class Decoder(Family):
    """Logits of the next token at every position."""

    loader = transformers.AutoModelForCausalLM

    def find_tower(self) -> torch.nn.Module:
        return self.model.base_model

    def kind(self, _plan: Plan) -> str:
        return "decoder"

    def check(self, plan: Plan) -> None:
        if plan.context > LONGEST_MASK:
            raise ExportError(f"the tail of a decoder takes at most {LONGEST_MASK} tokens; set --context")

    def final_norm(self, graph: Graph, x: str) -> str:
        raise NotImplementedError

    def end(self, graph: Graph, x: str, plan: Plan) -> tuple[str, str, list[str | int]]:
        if plan.layer < self.layers:  # transformers' last hidden state comes after this norm
            x = self.final_norm(graph, x)
        head = self.model.get_output_embeddings()
        return layers.dense(graph, x, head, "unembedding"), "logits", ["batch", "tokens", head.weight.shape[0]]

    def reference(self, inputs: Inputs, plan: Plan) -> tuple[torch.Tensor, torch.Tensor]:
        output = self.model(**inputs, output_hidden_states=True)
        return output.hidden_states[plan.layer], output.logits
