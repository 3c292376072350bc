"""Exports activations of tiny random models in every mode of export_activations.py, with what each row must be.

    write_meanings.py OUT_DIR          (needs torch, transformers, safetensors, numpy, blake3, pillow)

OUT_DIR/NAME is an export, OUT_DIR/NAME.json what a reader must find: per row [document, position, token id, its string],
per document the text, or the mean color of the thumbnail, [red, green, blue] from 0 to 255. It is computed here from the
tokenizer and the images, not with the exporter. sae-data/tests/meanings has its output; it is run by hand, because torch is
too large for every test.
"""

import json
import os
import pathlib
import subprocess
import sys
import tempfile

os.environ["HF_HUB_OFFLINE"] = "1"

import numpy as np
import torch
import transformers
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

EXPORT = pathlib.Path(__file__).parents[3] / "tools" / "export_activations.py"
TEXTS = ["the cat plays", "", "a play: naïve cats, the 猫", "cat", "the the the cat plays a play and the cat sat on it"]
KEPT = [text for text in TEXTS if text]
CONTEXT = 8
SIDE, PATCH = 32, 8
SHAPE = dict(hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16)


def bert(directory: pathlib.Path) -> transformers.PreTrainedTokenizerFast:
    """WordPiece, as MiniLM has it: pieces within a word begin with ##, and [CLS] and [SEP] are added."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "cat", "play", "##s", "a", ":", ",", "and", "sat", "on", "it"]
    tokenizer = Tokenizer(models.WordPiece({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    named = dict(unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]", pad_token="[PAD]", mask_token="[MASK]")
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=16, **named)
    fast.save_pretrained(directory)
    config = transformers.BertConfig(vocab_size=len(words), max_position_embeddings=16, **SHAPE)
    transformers.BertModel(config).save_pretrained(directory)
    return fast


def gpt2(directory: pathlib.Path) -> transformers.PreTrainedTokenizerFast:
    """Byte-level BPE, as GPT-2 has it: a space belongs to the token behind it."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = [*alphabet, "<|endoftext|>", "Ġt", "he", "Ġthe", "Ġc", "at", "Ġcat"]
    merges = [("Ġ", "t"), ("h", "e"), ("Ġt", "he"), ("Ġ", "c"), ("a", "t"), ("Ġc", "at")]
    tokenizer = Tokenizer(models.BPE({word: i for i, word in enumerate(words)}, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    named = dict(eos_token="<|endoftext|>")
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=16, **named)
    fast.save_pretrained(directory)
    config = transformers.GPT2Config(vocab_size=len(words), n_positions=16, n_embd=8, n_layer=2, n_head=2)
    transformers.GPT2Model(config).save_pretrained(directory)
    return fast


def clip(directory: pathlib.Path) -> None:
    config = transformers.CLIPConfig(
        text_config=dict(vocab_size=16, max_position_embeddings=8, bos_token_id=0, eos_token_id=1, **SHAPE),
        vision_config=dict(image_size=SIDE, patch_size=PATCH, **SHAPE),
        projection_dim=8,
    )
    transformers.CLIPModel(config).save_pretrained(directory)
    size = dict(height=SIDE, width=SIDE)
    transformers.CLIPImageProcessorPil(size=size, crop_size=size, do_center_crop=False).save_pretrained(directory)


def write_images(directory: pathlib.Path) -> list[list[int]]:
    """One image per color, of different shapes; returns the colors."""
    colors = [[200, 30, 30], [30, 180, 40], [20, 40, 220]]
    for i, color in enumerate(colors):
        folder = directory / f"class{i % 2}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (64 + 10 * i, 64), tuple(color)).save(folder / f"{i}.png")
    return [colors[i] for i in (0, 2, 1)]  # in the order of their folders


class Out:
    def __init__(self, root: pathlib.Path, work: pathlib.Path):
        self.root, self.work = root, work

    def export(self, name: str, *arguments: object) -> None:
        command = [sys.executable, EXPORT, "--dtype", "f32", "--batch", "2", *arguments, self.root / name, "--overwrite"]
        subprocess.run(list(map(str, command)), check=True, cwd=self.work)  # so that no path of this machine is written

    def check_colors(self, name: str, colors: list[list[int]]) -> None:
        """The thumbnails are of the right images."""
        for number, color in enumerate(colors):
            with Image.open(self.root / name / "thumbnails" / f"{number}.jpg") as image:
                assert np.abs(np.asarray(image).reshape(-1, 3).mean(0) - color).max() < 4, (name, number)

    def expect(self, name: str, rows: list[list[object]], **documents: object) -> None:
        text = json.dumps({"rows": rows} | documents, ensure_ascii=False, indent=None)
        (self.root / f"{name}.json").write_text(text + "\n", encoding="utf-8")


def texts(out: Out) -> None:
    source = out.work / "texts.jsonl"
    source.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    for kind, make in (("bert", bert), ("gpt2", gpt2)):
        tokenizer = make(out.work / kind)
        encoded = [tokenizer(text, truncation=True, max_length=CONTEXT)["input_ids"] for text in KEPT]

        def string(token: int) -> str | None:
            word = tokenizer.convert_ids_to_tokens(token)
            if kind == "bert":
                return word[2:] if word.startswith("##") else word if word.startswith("[") else f" {word}"
            whole = bytearray(byte for c in word for byte in [bytes_of[c]]) if word != "<|endoftext|>" else word.encode()
            return whole.decode("utf-8", "replace")

        bytes_of = byte_level() if kind == "gpt2" else {}
        common = ("--model", kind, "--modality", "text", "--text", source.name, "--context", CONTEXT)
        every = [[d, p, t, string(t)] for d, ids in enumerate(encoded) for p, t in enumerate(ids)]
        ends = [[d, p, ids[p], string(ids[p])] for d, ids in enumerate(encoded) for p in [len(ids) - 1]]
        none = [[d, None, None, None] for d in range(len(KEPT))]
        for tokens, arguments, rows in (
            ("all", ("--layer", 1), every),
            ("later", ("--layer", 1, "--drop-first", "--shard-mb", 1), [row for row in every if row[1] > 0]),
            ("cls", ("--tokens", "cls"), [row for row in every if row[1] == 0]),
            ("last", ("--tokens", "last"), ends),
            ("mean", ("--tokens", "mean"), none),
        ):
            if kind == "gpt2" and tokens not in ("all", "later"):
                continue
            name = f"{kind}-{tokens}"
            out.export(name, *common, *arguments)
            kept = sorted({row[0] for row in rows})
            rows = [[kept.index(row[0]), *row[1:]] for row in rows]
            out.expect(name, rows, texts=[KEPT[d] for d in kept])
    out.export("gpt2-no-texts", *common, "--no-texts")
    out.expect("gpt2-no-texts", every)


def byte_level() -> dict[str, int]:
    """The byte of each character of GPT-2's alphabet: printable bytes are themselves, the others follow from U+0100 on."""
    same = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in same]
    return {chr(byte): byte for byte in same} | {chr(256 + i): byte for i, byte in enumerate(others)}


def images(out: Out) -> None:
    clip(out.work / "clip")
    colors = write_images(out.work / "images")
    patches = (SIDE // PATCH) ** 2
    common = ("--model", "clip", "--modality", "vision", "--images", "images")
    for tokens, positions in (
        ("patches", range(1, 1 + patches)),
        ("all", range(1 + patches)),
        ("cls", [0]),
        ("mean", [None]),
        ("embed", [None]),
    ):
        out.export(f"clip-{tokens}", *common, "--tokens", tokens)
        out.check_colors(f"clip-{tokens}", colors)
        rows = [[d, p, None, None] for d in range(len(colors)) for p in positions]
        out.expect(f"clip-{tokens}", rows, colors=colors, grid=[SIDE // PATCH] * 2 if positions[0] is not None else None)


def main() -> None:
    torch.manual_seed(0)
    np.random.seed(0)
    out = pathlib.Path(sys.argv[1])
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as work:
        parts = Out(out, pathlib.Path(work))
        texts(parts)
        images(parts)


if __name__ == "__main__":
    main()
