"""Each kind of directory that is no model gives a message with the file, the key and the remedy."""

import json
import pickle
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import dynamic_sae
from dynamic_sae import DynamicSaeError


@pytest.fixture
def copy(runs, tmp_path):
    """A copy of a saved model, without checksums so that it can be changed."""
    directory = tmp_path / "model"
    shutil.copytree(runs["topk"] / "model", directory)
    (directory / "BLAKE3SUMS").unlink()
    dynamic_sae.load(directory)
    return directory


def refused(path, *parts):
    with pytest.raises(DynamicSaeError) as error:
        dynamic_sae.load(path)
    for part in parts:
        assert part in str(error.value)


def change_config(directory, **changes):
    path = directory / "cfg.json"
    config = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in config.items() if value is not None}))


def change_tensors(directory, change):
    path = directory / "sae.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


def test_directories_of_another_kind(tmp_path, runs):
    refused(tmp_path / "nowhere", "nowhere", "no such directory")
    refused(tmp_path, "neither a run nor a saved model", "give the directory of a run")
    (tmp_path / "config.toml").write_text("")
    refused(tmp_path, "no trained model yet", "sae-train --resume")
    other = tmp_path / "saelens"
    other.mkdir()
    (other / "cfg.json").write_text(json.dumps({"d_sae": 8, "architecture": "topk"}))
    refused(other, 'key "format"', "SAELens", "sae-eval import")
    (other / "cfg.json").write_text("[1]")
    refused(other, 'key "format"', "another kind")
    (other / "cfg.json").write_text("{")
    refused(other, "cfg.json", "not valid JSON", "copy the directory again")


def test_a_pickle_is_not_opened(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (open, (str(tmp_path / "opened"), "w"))

    (tmp_path / "ae.pt").write_bytes(pickle.dumps(Bomb()))
    refused(tmp_path, "pickle", "not opened", "python -m dynamic_sae import")
    refused(tmp_path / "ae.pt", "pickle", "not opened")
    assert not (tmp_path / "opened").exists()


def test_versions(copy):
    change_config(copy, format_version=4)
    refused(copy, 'key "format_version" is 4', "reads 3", "install a newer dynamic-sae")
    change_config(copy, format_version=1)
    refused(copy, 'key "format_version" is 1', "sae-eval import")
    change_config(copy, format_version=None)
    refused(copy, 'key "format_version" is None')


def test_keys(copy):
    model = json.loads((copy / "cfg.json").read_text())["model"]
    change_config(copy, model={key: value for key, value in model.items() if key != "n_latents"})
    refused(copy, "cfg.json", "n_latents")
    change_config(copy, model=model | {"n_latents": "many"})
    refused(copy, "cfg.json", "many")
    change_config(copy, model=model | {"architecture": {"name": "novel"}})
    refused(copy, '"model.architecture.name" is "novel"', "install a newer dynamic-sae")


def test_tensors(copy):
    change_tensors(copy, lambda tensors: tensors.update(stranger=np.zeros(3, np.float32)))
    refused(copy, 'tensor "stranger"', "save the model again")
    change_tensors(copy, lambda tensors: (tensors.pop("stranger"), tensors.update(W_dec=tensors["W_dec"][:5].copy())))
    refused(copy, 'tensor "W_dec" is float32 [5, 384]', "float32 [256, 384]")
    change_tensors(copy, lambda tensors: tensors.update(W_dec=np.zeros((256, 384), np.float64)))
    refused(copy, 'tensor "W_dec" is float64')
    change_tensors(copy, lambda tensors: tensors.update(W_dec=np.full((256, 384), np.nan, np.float32)))
    refused(copy, 'tensor "W_dec" has NaN or infinity')
    change_tensors(copy, lambda tensors: tensors.pop("W_dec"))
    refused(copy, "sae.safetensors", 'tensor "W_dec" is missing')


def test_files(copy):
    weights = copy / "sae.safetensors"
    whole = weights.read_bytes()
    for length in (len(whole) - 1, len(whole) // 2, 100, 8, 3, 0):
        weights.write_bytes(whole[:length])
        refused(copy, "sae.safetensors", "copy the directory again")
    weights.unlink()
    refused(copy, "sae.safetensors", "no such file")


def test_checksums(runs, tmp_path):
    directory = tmp_path / "model"
    shutil.copytree(runs["topk"] / "model", directory)
    weights = directory / "sae.safetensors"
    whole = bytearray(weights.read_bytes())
    whole[-1] ^= 1
    weights.write_bytes(whole)
    refused(directory, "sae.safetensors", "BLAKE3", "copy the directory again")
    weights.unlink()
    refused(directory, "sae.safetensors", "missing", "BLAKE3SUMS names it")
    (directory / "BLAKE3SUMS").write_text("../../secret  x\n")
    refused(directory, "BLAKE3SUMS", "not the checksums of a saved model")
