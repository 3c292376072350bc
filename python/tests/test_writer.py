"""ActivationWriter: what it writes is read back row for row, and what it refuses leaves nothing that looks complete."""

import json
import signal
import subprocess
import sys
import textwrap
import time

import numpy as np
import pytest
from conftest import REPOSITORY, run
from safetensors import safe_open

import dynamic_sae
from dynamic_sae import ActivationWriter, DynamicSaeError, shards


def rows(n, width=6, seed=0):
    return np.random.default_rng(seed).standard_normal((n, width)).astype(np.float32)


def index_of(directory):
    return json.loads((directory / "index.json").read_text())


def read(directory):
    """The tensors of all shards, one after the other; float32 of bfloat16."""
    parts = {}
    for shard in index_of(directory)["shards"]:
        path = directory / shard["file"]
        header = json.loads(path.read_bytes()[8 : 8 + int.from_bytes(path.read_bytes()[:8], "little")])
        with safe_open(path, "numpy") as file:
            for name in file.keys():  # noqa: SIM118 (it is no dict)
                if header[name]["dtype"] == "BF16":
                    start, end = header[name]["data_offsets"]
                    bits = np.frombuffer(path.read_bytes()[-(total(header) - start) :][: end - start], "<u2")
                    tensor = (bits.astype(np.uint32) << 16).view(np.float32).reshape(header[name]["shape"])
                else:
                    tensor = file.get_tensor(name)
                parts.setdefault(name, []).append(tensor)
    return {name: np.concatenate(tensors) for name, tensors in parts.items()}


def total(header):
    return max(entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__")


def test_batches_of_tokens_with_padding(tmp_path, programs):
    x = rows(4 * 5).reshape(4, 5, 6)
    mask = np.array([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1], [0, 0, 0, 0, 0], [0, 0, 1, 1, 1]])
    ids = np.arange(20).reshape(4, 5)
    texts = ["one", "two", "nothing", "left padding"]
    with ActivationWriter(tmp_path / "a", dtype="f32", metadata={"model": "tiny"}) as writer:
        writer.add(x, tokens=ids, mask=mask, texts=texts)
        writer.add(x[:2], tokens=ids[:2], mask=mask[:2], texts=texts[:2])
    assert (writer.rows, writer.documents) == (19, 5)
    found = read(tmp_path / "a")
    again = mask.astype(bool)[:2]
    assert np.array_equal(found["activations"], np.concatenate([x[mask.astype(bool)], x[:2][again]]))
    assert np.array_equal(found["tokens"], np.concatenate([ids[mask.astype(bool)], ids[:2][again]]))
    assert found["positions"].tolist() == [0, 1, 2, 0, 1, 2, 3, 4, 0, 1, 2, 0, 1, 2, 0, 1, 2, 3, 4]
    assert found["doc"].tolist() == [0] * 3 + [1] * 5 + [2] * 3 + [3] * 3 + [4] * 5
    lines = [json.loads(line)["text"] for line in (tmp_path / "a" / "texts.jsonl").read_text().splitlines()]
    assert lines == ["one", "two", "left padding", "one", "two"]
    assert index_of(tmp_path / "a")["metadata"] == {"tool": "dynamic_sae.ActivationWriter 1", "model": "tiny"}
    shown = run("sae-data", "inspect", tmp_path / "a", "--verify")
    assert "19 rows" in shown
    assert "left padding" in shown or "two" in shown or "one" in shown


def test_rows_without_documents_fill_shards(tmp_path, programs):
    with ActivationWriter(tmp_path / "a", dtype="f32", shard_mb=24 * 100 / 2**20) as writer:
        for start in range(0, 1000, 70):
            writer.add(rows(1000)[start : start + 70], labels=np.arange(1000)[start : start + 70] % 7)
    assert [shard["rows"] for shard in index_of(tmp_path / "a")["shards"]] == [75] * 13 + [25]  # 24 + 8 bytes per row
    found = read(tmp_path / "a")
    assert set(found) == {"activations", "labels"}
    assert np.array_equal(found["activations"], rows(1000))
    assert np.array_equal(found["labels"], np.arange(1000) % 7)
    run("sae-data", "inspect", tmp_path / "a", "--verify")


def test_documents_stay_together_and_may_be_longer_than_a_shard(tmp_path, programs):
    lengths = [30, 50, 40, 250, 20]
    doc = np.repeat(np.arange(5), lengths)
    with ActivationWriter(tmp_path / "a", dtype="f32", shard_mb=32 * 100 / 2**20) as writer:
        writer.add(rows(390), doc=doc)
    assert [shard["rows"] for shard in index_of(tmp_path / "a")["shards"]] == [80, 100, 100, 90, 20]
    assert np.array_equal(read(tmp_path / "a")["doc"], doc)
    run("sae-data", "inspect", tmp_path / "a", "--verify")


def test_a_document_goes_on_in_the_next_batch(tmp_path):
    with ActivationWriter(tmp_path / "a") as writer:
        writer.add(rows(3), doc=[4, 4, 9], texts=["four", "nine"])
        writer.add(rows(2), doc=9, texts=[])
        writer.add(rows(2), doc=[9, 12], texts="twelve")
    assert read(tmp_path / "a")["doc"].tolist() == [4, 4, 9, 9, 9, 9, 12]
    assert writer.documents == 3
    assert [json.loads(line)["text"] for line in (tmp_path / "a" / "texts.jsonl").open()] == ["four", "nine", "twelve"]


@pytest.mark.parametrize("dtype", ["f16", "bf16", "f32"])
def test_types(dtype, tmp_path, programs):
    x = np.concatenate([rows(50), np.array([[0, -0.0, 1e-30, 1 + 2**-8, 1 + 2**-8 + 2**-16, -65504]], np.float32)])
    with ActivationWriter(tmp_path / "a", dtype=dtype) as writer:
        writer.add(x)
    found = read(tmp_path / "a")["activations"]
    assert np.abs(found - x).max() <= {"f16": 2**-11 * 65504 / 2**4, "bf16": 2**-9 * 65536, "f32": 0}[dtype]
    assert np.abs((found - x)[:50] / x[:50]).max() <= {"f16": 2**-10, "bf16": 2**-8, "f32": 0}[dtype]
    assert index_of(tmp_path / "a")["dtype"] == dtype.upper()
    assert dtype.upper() in run("sae-data", "inspect", tmp_path / "a", "--verify").upper()


def test_bfloat16_is_rounded_as_torch_rounds():
    torch = pytest.importorskip("torch")
    bits = np.random.default_rng(0).integers(0, 2**32, 200_000, dtype=np.uint32)
    x = bits.view(np.float32)
    x = np.concatenate([x[np.isfinite(x)], (np.arange(4096, dtype=np.uint32) * 0x4000 + 0x3F808000).view(np.float32)])
    expected = torch.from_numpy(x).to(torch.bfloat16).view(torch.int16).numpy().view(np.uint16)
    assert np.array_equal(shards.bfloat16_bits(x), expected)


def test_torch_tensors_are_written_as_arrays_are(tmp_path):
    torch = pytest.importorskip("torch")
    x = rows(8).reshape(2, 4, 6)
    mask = np.array([[1, 1, 1, 0], [1, 1, 0, 0]])
    for name, of in (("numpy", np.asarray), ("torch", torch.tensor)):
        with ActivationWriter(tmp_path / name) as writer:
            values = of(x)
            values = values.requires_grad_() if name == "torch" else values
            writer.add(values, mask=of(mask), tokens=of(np.arange(8).reshape(2, 4)), labels=of([5, 6]))
    assert index_of(tmp_path / "numpy") == index_of(tmp_path / "torch")  # with the checksums
    with ActivationWriter(tmp_path / "half", dtype="bf16") as writer:
        writer.add(torch.tensor(x, dtype=torch.bfloat16))
    assert np.array_equal(read(tmp_path / "half")["activations"], torch.tensor(x).bfloat16().float().numpy().reshape(-1, 6))


REFUSED = [
    (dict(rows=np.full((3, 6), np.nan)), ["row 4 (row 0 of this batch)", "activation 0", "not finite"]),
    (dict(rows=np.array([[0.0] * 6, [0, 0, -np.inf, 0, 0, 0], [0] * 6])), ["row 5 (row 1 of this batch)", "activation 2"]),
    (dict(rows=np.array([[0, 0, 7e4, 0, 0, 0]] * 3)), ["7e+04", "does not fit F16", "use dtype bf16 or f32"]),
    (dict(rows=np.zeros((3, 5), np.float32)), ["width 5", "the first batch had 6"]),
    (dict(rows=np.zeros((3, 6), int)), ["expected floats"]),
    (dict(rows=np.zeros(6, np.float32)), ["[6]", "[rows, width]"]),
    (dict(rows=np.array([["a"] * 6])), ["expected numbers"]),
    (dict(tokens=None), ["tokens: this batch has none, the first batch had it"]),
    (dict(labels=3), ["labels: this batch has it, the first batch had none"]),
    (dict(texts=["a"]), ["texts: this batch has it"]),
    (dict(tokens=np.zeros(4, int)), ["tokens: shape [4]", "expected [3]"]),
    (dict(tokens=[1.5, 2, 3]), ["tokens: expected integers"]),
    (dict(tokens=[2**31, 2, 3]), ["2147483648", "does not fit int32"]),
    (dict(doc=[2, 1, 1]), ["doc: 1 comes after 2"]),
    (dict(doc=0), ["doc: 0 comes after 1"]),
    (dict(mask=np.ones((3, 6))), ["mask: shape [3, 6]", "expected [3]"]),
]


@pytest.mark.parametrize(("changes", "words"), REFUSED)
def test_a_refused_batch_leaves_nothing_behind(changes, words, tmp_path):
    usual = dict(rows=rows(3), doc=1, tokens=[1, 2, 3])
    with ActivationWriter(tmp_path / "a") as writer:
        writer.add(rows(4), doc=[0, 0, 1, 1], tokens=[1, 2, 3, 4])
        with pytest.raises(DynamicSaeError) as error:
            writer.add(**usual | changes)
        writer.add(**usual)
    for word in words:
        assert word in str(error.value)
    assert index_of(tmp_path / "a")["rows"] == 7
    assert read(tmp_path / "a")["doc"].tolist() == [0, 0, 1, 1, 1, 1, 1]


def test_overflow_of_bfloat16_and_float32(tmp_path):
    with pytest.raises(DynamicSaeError, match="does not fit BF16; use dtype f32"):
        ActivationWriter(tmp_path / "a", dtype="bf16").add(np.array([[3.4e38]]))
    with pytest.raises(DynamicSaeError, match="does not fit F32; scale the rows down"):
        ActivationWriter(tmp_path / "b", dtype="f32").add(np.array([[1e39]]))


def test_texts_must_fit(tmp_path):
    with ActivationWriter(tmp_path / "a") as writer:
        with pytest.raises(DynamicSaeError, match="2 texts for 3 rows"):
            writer.add(rows(3), texts=["a", "b"])
        with pytest.raises(DynamicSaeError, match="a list of strings"):
            writer.add(rows(3), texts=[1, 2, 3])
        writer.add(rows(3), texts=["a", "b\nc", "naïve \ud800"], mask=[1, 0, 1])
    lines = (tmp_path / "a" / "texts.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["text"] for line in lines] == ["a", "naïve ?"]


def test_directories(tmp_path):
    with pytest.raises(DynamicSaeError, match="f8.*use one of f16, bf16, f32"):
        ActivationWriter(tmp_path / "x", dtype="f8")
    with pytest.raises(DynamicSaeError, match="above zero"):
        ActivationWriter(tmp_path / "x", shard_mb=0)
    (tmp_path / "file").write_text("")
    with pytest.raises(DynamicSaeError, match="this is a file"):
        ActivationWriter(tmp_path / "file")
    with pytest.raises(DynamicSaeError, match="other files, such as file"):
        ActivationWriter(tmp_path)
    with pytest.raises(DynamicSaeError, match="other files, such as file"):
        ActivationWriter(tmp_path, overwrite=True)
    assert (tmp_path / "file").exists()
    with ActivationWriter(tmp_path / "a") as writer:
        writer.add(rows(3))
    with pytest.raises(DynamicSaeError, match="this writer is finished"):
        writer.add(rows(3))
    with pytest.raises(DynamicSaeError, match="a finished data set.*overwrite=True"):
        ActivationWriter(tmp_path / "a")
    with ActivationWriter(tmp_path / "a", overwrite=True) as writer:
        writer.add(rows(5))
    assert index_of(tmp_path / "a")["rows"] == 5
    with pytest.raises(DynamicSaeError, match="no row was given"), ActivationWriter(tmp_path / "b") as writer:
        writer.add(rows(0))
    assert not (tmp_path / "b" / "index.json").exists()


def test_an_error_in_the_block_leaves_no_index(tmp_path):
    with pytest.raises(RuntimeError, match="the model broke"), ActivationWriter(tmp_path / "a", shard_mb=1e-4) as writer:
        writer.add(rows(100), texts=["t"] * 100)
        raise RuntimeError("the model broke")
    assert list((tmp_path / "a").glob("shard-*"))
    assert not (tmp_path / "a" / "index.json").exists()
    assert not (tmp_path / "a" / "texts.jsonl").exists()


def test_kill_9_leaves_no_index(tmp_path, programs):
    """A killed process leaves whole shards and no index, the reader says so, and a new writer takes over if it is told to."""
    script = f"""
        import sys
        sys.path[:0] = {sys.path!r}
        import numpy, dynamic_sae
        with dynamic_sae.ActivationWriter({str(tmp_path / "a")!r}, shard_mb=0.25) as writer:
            while True:
                writer.add(numpy.ones((1000, 32), "f4"), texts=["text"] * 1000)
    """
    process = subprocess.Popen([sys.executable, "-c", textwrap.dedent(script)])
    deadline = time.monotonic() + 60
    while len(list((tmp_path / "a").glob("shard-*.safetensors"))) < 3 and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL if hasattr(signal, "SIGKILL") else signal.SIGTERM)
    process.wait()
    whole = list((tmp_path / "a").glob("shard-*.safetensors"))
    assert len(whole) >= 3
    for path in whole:
        with safe_open(path, "numpy") as file:
            assert (file.get_tensor("activations") == 1).all()
    assert not (tmp_path / "a" / "index.json").exists()
    with pytest.raises(DynamicSaeError, match="interrupted.*overwrite=True"):
        ActivationWriter(tmp_path / "a")
    with ActivationWriter(tmp_path / "a", overwrite=True) as writer:
        writer.add(rows(10))
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == ["index.json", "shard-00000.safetensors"]
    run("sae-data", "inspect", tmp_path / "a", "--verify")


def test_importing_needs_neither_torch_nor_scipy():
    code = (
        f"import sys; sys.path[:0] = {sys.path!r}; import dynamic_sae, dynamic_sae.shards, dynamic_sae.writer\n"
        "print([name for name in ('torch', 'scipy', 'transformers') if name in sys.modules])\n"
        "print(dynamic_sae.ActivationWriter, [name for name in dynamic_sae.__all__ if name not in dir(dynamic_sae)])"
    )
    shown = run(sys.executable, "-c", code).splitlines()
    assert shown[0] == "[]"
    assert shown[1].endswith("[]")
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = dynamic_sae.nothing


def test_the_licences_are_those_of_the_repository():
    for name in ("LICENSE-MIT", "LICENSE-APACHE"):
        assert (REPOSITORY / "python" / name).read_text() == (REPOSITORY / name).read_text()
