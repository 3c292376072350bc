"""dynamic_sae.codes and dynamic_sae.report."""

import json
import shutil

import numpy as np
import pytest
from conftest import SAMPLE, run

import dynamic_sae
from dynamic_sae import DynamicSaeError


def test_codes_of_several_shards_and_half_precision(runs, encoded, tmp_path):
    whole = dynamic_sae.codes(encoded["relu"])
    assert (whole.dtype, whole.shape, whole.has_sorted_indices) == (np.float32, (2404, 256), True)
    halved = ("--dtype", "f16", "--shard-mb", 1, "--reconstruct")
    run("sae-eval", "encode", runs["relu"], SAMPLE / "heldout.safetensors", tmp_path / "half", *halved)
    assert len(list((tmp_path / "half").glob("codes-*"))) > 1
    half = dynamic_sae.codes(tmp_path / "half", verify=True)
    assert abs(half - whole).max() <= 1e-3 * abs(whole).max()
    run("sae-eval", "encode", runs["relu"], SAMPLE / "heldout.safetensors", tmp_path / "some", "--latents", "3,17", "--top", 1)
    some = dynamic_sae.codes(tmp_path / "some")
    assert some.shape == (2404, 256)
    assert set(some.indices) <= {3, 17}


def as_parquet(source, target):
    """The same codes as sae-eval's --format parquet has them: one line per entry, rows counted over all shards."""
    pyarrow = pytest.importorskip("pyarrow")
    import pyarrow.parquet

    codes, index = dynamic_sae.codes(source), json.loads((source / "index.json").read_text())
    target.mkdir()
    index["shards"] = []
    for start, stop in ((0, 1000), (1000, 2404)):
        part = codes[start:stop].tocoo()
        table = pyarrow.table({"row": (part.row + start).astype("u8"), "latent": part.col.astype("u4"), "value": part.data})
        name = f"codes-{start:05}.parquet"
        pyarrow.parquet.write_table(table, target / name)
        size = (target / name).stat().st_size
        index["shards"].append({"file": name, "rows": stop - start, "entries": part.nnz, "bytes": size, "blake3": ""})
    (target / "index.json").write_text(json.dumps(index))


def test_parquet(encoded, tmp_path):
    as_parquet(encoded["topk"], tmp_path / "parquet")
    assert (dynamic_sae.codes(tmp_path / "parquet") != dynamic_sae.codes(encoded["topk"])).nnz == 0


def refused(path, *parts, **options):
    with pytest.raises(DynamicSaeError) as error:
        dynamic_sae.codes(path, **options)
    for part in parts:
        assert part in str(error.value)


def test_codes_that_are_none(encoded, tmp_path):
    refused(tmp_path, "index.json", "sae-eval encode")
    refused(encoded["topk"] / "reconstruction", 'key "format"', "a data set of activations")
    directory = tmp_path / "codes"
    shutil.copytree(encoded["topk"], directory)
    index, shard = directory / "index.json", directory / "codes-00000.safetensors"
    content = json.loads(index.read_text())
    for change, words in (
        ({"version": 2}, 'key "version" is 2'), ({"rows": 7}, 'key "rows" is 7'), ({"latents": "all"}, 'key "latents"'),
        ({"latents": 100}, '"latents": 100'), ({"shards": [{}]}, 'key "shards"'),
        ({"shards": [content["shards"][0] | {"file": "../x"}]}, "'../x'"),
        ({"shards": [content["shards"][0] | {"entries": 5}]}, "index.json says 2404 and 5"),
    ):
        index.write_text(json.dumps(content | change))
        refused(directory, words)
    index.write_text(json.dumps(content))
    whole = bytearray(shard.read_bytes())
    whole[-1] ^= 1
    shard.write_bytes(whole)
    refused(directory, "BLAKE3", "copy the directory again", verify=True)
    shard.write_bytes(whole[:-1])
    refused(directory, "bytes", "index.json says", "copy the directory again")
    shard.unlink()
    refused(directory, "missing")
    index.rename(directory / "index.json.partial")
    refused(directory, "not finished", "run the same sae-eval encode again")


def test_report(runs):
    path = runs["topk"]
    with pytest.raises(DynamicSaeError, match="no report yet.*sae-eval"):
        dynamic_sae.report(path)
    run("sae-eval", path, "--no-html", "--no-untrained", "--threads", 1)
    report = dynamic_sae.report(path)
    assert report["model"]["architecture"]["name"] == "topk"
    assert report == dynamic_sae.report(path / "reports") == dynamic_sae.report(path / "reports" / "report.json")


def test_reports_that_are_none(tmp_path):
    for make, words in ((None, "no such directory"), ("dir", "neither a run"), ("{", "not valid JSON"), ("{}", 'key "schema"')):
        path = tmp_path / "x"
        if make == "dir":
            path.mkdir()
        elif make:
            (path / "report.json").write_text(make)
        with pytest.raises(DynamicSaeError, match=words):
            dynamic_sae.report(path)
