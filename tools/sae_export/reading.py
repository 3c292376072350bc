"""The documents to export, texts or images, with their classes."""

import json
import pathlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from . import Args, ExportError

IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"}
MAX_CLASSES = 1_000_000  # a larger label is an id, not a class number


@dataclass(frozen=True)
class Document:
    number: int  # position in the source, skipped documents included
    name: str  # for messages
    content: str | pathlib.Path
    label: int | None


def read_texts(path: pathlib.Path) -> Iterator[tuple[int, str, str, int | str | None]]:
    """Yields number, name for messages, text and label of every document that is not blank."""
    try:
        with path.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines):
                name, text, label = f"{path}, line {number + 1}", line.rstrip("\r\n"), None
                if path.suffix == ".jsonl" and text.strip():
                    record = json.loads(text)
                    if not isinstance(record, dict) or not isinstance(record.get("text"), str):
                        raise ExportError(f'{name}: expected an object with a string "text"')
                    text, label = record["text"], record.get("label")
                    if isinstance(label, bool) or not isinstance(label, (int, str, type(None))):
                        raise ExportError(f"{name}: a label is a class number or a class name, not {label!r}")
                if text.strip():
                    yield number, name, text, label
    except json.JSONDecodeError as error:
        raise ExportError(f"{name}: not JSON: {error}") from error
    except UnicodeDecodeError as error:
        raise ExportError(f"{path}: not UTF-8 ({error.reason})") from error


def text_labels(path: pathlib.Path) -> set[int | str]:
    """All labels of a text file, from a pass of its own; empty if it has none."""
    found: set[int | str] = set()
    unlabelled = None
    for _, name, _, label in read_texts(path) if path.suffix == ".jsonl" else ():
        if label is None:
            unlabelled = unlabelled or name
        else:
            found.add(label)
        if found and unlabelled:
            raise ExportError(f"{unlabelled} has no label, but other documents have (--labels off ignores them)")
    return found


def list_images(directory: pathlib.Path) -> list[tuple[pathlib.Path, str | None]]:
    """All images with the name of their class folder (None in a flat directory), in sorted order."""

    def images(paths: Iterable[pathlib.Path]) -> list[pathlib.Path]:
        return sorted(path for path in paths if path.suffix.lower() in IMAGE_SUFFIXES)

    flat: list[tuple[pathlib.Path, str | None]] = [(path, None) for path in images(directory.iterdir())]
    folders = sorted(path for path in directory.iterdir() if path.is_dir())
    found = [(path, folder.name) for folder in folders for path in images(folder.rglob("*"))]
    if flat and found:
        raise ExportError(f"{directory} has images both beside and inside sub-folders; keep one layout")
    if not flat and not found:
        raise ExportError(f"{directory} has no images ({', '.join(sorted(IMAGE_SUFFIXES))})")
    return flat or found


def read_class_texts(path: pathlib.Path) -> dict[str, str]:
    try:
        texts = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ExportError(f"{path}: not JSON: {error}") from error
    if not isinstance(texts, dict) or not texts or not all(isinstance(text, str) for text in texts.values()):
        raise ExportError(f'{path}: expected an object {{"class name": "text", ...}}')
    return texts


def class_names(labels: set[int | str], texts: dict[str, str] | None) -> list[str]:
    """The classes in the order of their numbers: the keys of the class texts, or the classes in the labels."""
    numbers = {label for label in labels if isinstance(label, int)}
    names = {label for label in labels if isinstance(label, str)}
    if numbers and names:
        raise ExportError(f"labels mix numbers and names, such as {min(numbers)} and {min(names)!r}")
    if numbers and not 0 <= min(numbers) <= max(numbers) < (len(texts) if texts else MAX_CLASSES):
        limit = f"the {len(texts)} classes of --class-texts" if texts else f"0..{MAX_CLASSES - 1}"
        raise ExportError(f"labels {min(numbers)}..{max(numbers)} are not within {limit}")
    if texts is None:
        return sorted(names) or [str(number) for number in range(max(numbers, default=-1) + 1)]
    if missing := sorted(names - texts.keys()):
        raise ExportError(f"--class-texts has no text for {len(missing)} classes, such as {missing[0]!r}")
    return list(texts)


def find_documents(args: Args, texts: dict[str, str] | None) -> tuple[Iterator[Document], list[str], bool]:
    """The documents, the class names (empty if there are no classes), and whether the documents have labels."""
    if args.modality == "text":
        if args.text.suffix not in (".txt", ".jsonl"):
            raise ExportError(f"--text {args.text}: expected a .txt or .jsonl file")
        if not args.text.is_file():
            raise ExportError(f"--text {args.text}: no such file")
        found = text_labels(args.text) if args.labels == "on" else set()
        source = read_texts(args.text)
    else:
        if not args.images.is_dir():
            raise ExportError(f"--images {args.images}: no such directory")
        images = list_images(args.images)
        found = {folder for _, folder in images if folder is not None} if args.labels == "on" else set()
        source = ((number, str(path), path, folder) for number, (path, folder) in enumerate(images))
    classes = class_names(found, texts)
    position = {name: i for i, name in enumerate(classes)}
    documents = (
        Document(number, name, content, position.get(label, label) if found else None)
        for number, name, content, label in source
    )
    return documents, classes, bool(found)
