"""What rows are (docs/DATA.md, "What rows are"): strings of token ids, texts of documents, thumbnails of images."""

import io
import json
import os
import pathlib
from typing import TYPE_CHECKING, Any, BinaryIO

import torch

from .reading import Document
from .states import Rows

if TYPE_CHECKING:
    from PIL.Image import Image

VOCABULARY, TEXTS, THUMBNAILS = "vocab.json", "texts.jsonl", "thumbnails"
LONGEST_SIDE = 96  # of a thumbnail, in pixels
QUALITY = 85  # of its JPEG


def token_strings(tokenizer: Any) -> list[str]:
    """The text of every token id, so that the strings of consecutive tokens, one after the other, are their text.

    Many tokenizers leave out the space before the first token that they decode, or mark a piece within a word (##ing). So
    each token is decoded behind the letter "a", and the text of that letter is taken away.
    """

    def decode(ids: list[list[int]]) -> list[str]:
        return tokenizer.batch_decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)

    before = tokenizer("a", add_special_tokens=False)["input_ids"]
    alone = decode([[token] for token in range(len(tokenizer))])
    behind = decode([[*before, token] for token in range(len(tokenizer))])
    (start,) = decode([before])
    special = set(tokenizer.all_special_ids)
    return [
        text[len(start) :] if token not in special and text.startswith(start) else alone[token]
        for token, text in enumerate(behind)
    ]


def picture(pixels: torch.Tensor, processor: Any) -> "Image":
    """What the model sees of an image: its pixels [3, height, width] before they were normalized."""
    from PIL import Image

    if getattr(processor, "do_normalize", False):
        mean, std = (torch.tensor(getattr(processor, name)).view(-1, 1, 1) for name in ("image_mean", "image_std"))
        pixels = pixels * std + mean
    if not getattr(processor, "do_rescale", True):
        pixels = pixels / 255
    levels = (pixels.clamp(0, 1) * 255).round().to(torch.uint8)
    return Image.fromarray(levels.permute(1, 2, 0).contiguous().numpy())


def thumbnail(pixels: torch.Tensor, processor: Any) -> bytes:
    """A small JPEG of what the model sees."""
    image = picture(pixels, processor)
    image.thumbnail((LONGEST_SIDE, LONGEST_SIDE))
    file = io.BytesIO()
    image.save(file, "JPEG", quality=QUALITY)
    return file.getvalue()


class MeaningWriter:
    """Writes the text or the thumbnail of each document that has rows, in their order."""

    def __init__(self, directory: pathlib.Path, wanted: bool):
        self.directory, self.wanted = directory, wanted
        self.documents = 0
        self.file: BinaryIO | None = None

    def add(self, document: Document, rows: Rows) -> None:
        number, self.documents = self.documents, self.documents + 1
        if not self.wanted:
            return
        if rows.thumbnail is not None:
            self._replace(self.directory / THUMBNAILS / f"{number}.jpg", rows.thumbnail)
        elif isinstance(document.content, str):
            if self.file is None:
                self.file = (self.directory / f"{TEXTS}.tmp").open("wb")
            line = json.dumps({"text": document.content}, ensure_ascii=False)
            self.file.write(line.encode("utf-8", "replace") + b"\n")  # JSON may hold half a surrogate pair

    def _replace(self, path: pathlib.Path, data: bytes) -> None:
        path.parent.mkdir(exist_ok=True)
        temporary = path.with_name(path.name + ".tmp")
        temporary.write_bytes(data)
        temporary.replace(path)

    def finish(self) -> None:
        """Give the texts their name, once they are complete."""
        if self.file is not None:
            self.file.flush()
            os.fsync(self.file.fileno())
            self.file.close()
            (self.directory / f"{TEXTS}.tmp").replace(self.directory / TEXTS)
