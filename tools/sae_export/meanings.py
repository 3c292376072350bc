"""What rows are (docs/DATA.md, "What rows are"): texts of documents, thumbnails of images."""

import io
import pathlib
from typing import TYPE_CHECKING, Any

import torch
from dynamic_sae.shards import TextWriter

from .reading import Document
from .states import Rows

if TYPE_CHECKING:
    from PIL.Image import Image

THUMBNAILS = "thumbnails"
LONGEST_SIDE = 96  # of a thumbnail, in pixels
QUALITY = 85  # of its JPEG


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
        self.texts = TextWriter(directory)

    def add(self, document: Document, rows: Rows) -> None:
        number, self.documents = self.documents, self.documents + 1
        if not self.wanted:
            return
        if rows.thumbnail is not None:
            self._replace(self.directory / THUMBNAILS / f"{number}.jpg", rows.thumbnail)
        elif isinstance(document.content, str):
            self.texts.add(document.content)

    def _replace(self, path: pathlib.Path, data: bytes) -> None:
        path.parent.mkdir(exist_ok=True)
        temporary = path.with_name(path.name + ".tmp")
        temporary.write_bytes(data)
        temporary.replace(path)

    def finish(self) -> None:
        """Give the texts their name, once they are complete."""
        self.texts.finish()
