"""The parts of complexity.py: rank correlations, runs with their codes, measures, surprisals, tables and the picture."""


class ComplexityError(Exception):
    """A mistake in the arguments or the data, told in one line."""
