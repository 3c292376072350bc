"""The one kind of error that this package raises for files and options: what is wrong, where, and what to do."""


class DynamicSaeError(ValueError):
    """A file or an option that cannot be used. The message names the file, the key and the remedy."""
