"""The parts of export_tail.py: a graph, the layers it is made of, and the families of models."""

TOOL = "export_tail 1"
