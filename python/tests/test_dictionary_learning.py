"""Our models in dictionary_learning's own classes, and its dictionaries as runs of ours."""

import json
import os

import pytest
from doors_helper import (
    HELD_OUT,
    PLAIN,
    REFINED,
    TRAIN,
    done,
    door_runs,
    fvu,
    ours,
    package,
    refused,
    rows,
    sae_eval,
    same,
    theirs,
    tied,
)

torch = pytest.importorskip("torch", reason="torch is not installed")
dictionary_learning = pytest.importorskip("dictionary_learning", reason="dictionary-learning is not installed")
dictionary_utils = pytest.importorskip("dictionary_learning.utils", reason="dictionary-learning cannot be imported")

from dictionary_learning.dictionary import AutoEncoder, AutoEncoderNew, GatedAutoEncoder, JumpReluAutoEncoder  # noqa: E402
from dictionary_learning.trainers.batch_top_k import BatchTopKSAE  # noqa: E402
from dictionary_learning.trainers.matryoshka_batch_top_k import MatryoshkaBatchTopKSAE  # noqa: E402
from dictionary_learning.trainers.top_k import AutoEncoderTopK  # noqa: E402

import dynamic_sae  # noqa: E402
from dynamic_sae import dictionary_learning as door  # noqa: E402
from dynamic_sae.errors import DynamicSaeError  # noqa: E402

__all__ = ["door_runs"]
WIDTH, LATENTS, K = 384, 256, 16
CLASSES = {
    "attention_relu": "AutoEncoder", "relu": "AutoEncoder", "topk": "AutoEncoderTopK", "topk_projected": "AutoEncoderTopK",
    "batch_topk": "BatchTopKSAE", "matryoshka": "MatryoshkaBatchTopKSAE", "jumprelu": "JumpReluAutoEncoder",
    "jumprelu_uncentred": "JumpReluAutoEncoder", "gated": "GatedAutoEncoder",
}
MADE = {
    "AutoEncoder": lambda: AutoEncoder(WIDTH, LATENTS),
    "AutoEncoderNew": lambda: AutoEncoderNew(WIDTH, LATENTS),
    "GatedAutoEncoder": lambda: GatedAutoEncoder(WIDTH, LATENTS),
    "AutoEncoderTopK": lambda: AutoEncoderTopK(WIDTH, LATENTS, K),
    "BatchTopKSAE": lambda: BatchTopKSAE(WIDTH, LATENTS, K),
    "MatryoshkaBatchTopKSAE": lambda: MatryoshkaBatchTopKSAE(WIDTH, LATENTS, K, [32, 96, 128]),
    "JumpReluAutoEncoder": lambda: JumpReluAutoEncoder(WIDTH, LATENTS),
}


def loaded(directory):
    """What dictionary_learning itself makes of a directory."""
    return dictionary_utils.load_dictionary(str(directory), "cpu")[0]


def made(name, directory, threshold=0.02, **trainer):
    """A dictionary of random weights, as dictionary_learning saves it, with every bias at work."""
    torch.manual_seed(0)
    sae = MADE[name]()
    with torch.no_grad():
        for key, values in sae.named_parameters():
            if values.ndim == 1 and key != "threshold":
                values.copy_(0.02 * torch.randn(values.shape))
        for decoder in [sae.decoder.weight] if hasattr(sae, "decoder") else [sae.W_dec]:
            decoder.mul_(1 + torch.rand(decoder.shape))  # of other lengths than one
        if hasattr(sae, "threshold"):
            sae.threshold.fill_(threshold)
    directory.mkdir()
    torch.save(sae.state_dict(), directory / "ae.pt")
    trainer = {"dict_class": name, "trainer_class": "TopKTrainer", "lm_name": "gpt2", "layer": 8,
               "submodule_name": "resid_post_layer_8"} | ({"k": K} if hasattr(sae, "k") else {}) | trainer
    (directory / "config.json").write_text(json.dumps({"trainer": trainer, "buffer": {"ctx_len": 128}}))
    return directory


@pytest.mark.parametrize("name", PLAIN)
def test_every_architecture_that_it_holds_there_and_back(name, door_runs, tmp_path):
    out, back, ties = tmp_path / "out", tmp_path / "back", tied(door_runs[name])
    assert f"class: {CLASSES[name]}" in done(*package("export", "--to", "dictionary_learning", door_runs[name], out))
    sae = loaded(out)
    assert type(sae).__name__ == CLASSES[name]
    same(name, type(sae).__name__, ours(door_runs[name]), theirs(sae), ties)
    certificate = json.loads((out / "certificate.json").read_text())
    assert certificate["fvu"]["written"] == pytest.approx(fvu(rows(), theirs(sae)[1]), abs=1e-5)
    done(*package("import", out, back))
    same(name, "import", ours(door_runs[name]), ours(back), ties)
    kept = {"attention_relu": "relu", "topk_projected": "topk", "jumprelu_uncentred": "jumprelu"}.get(name, name)
    there, again = dynamic_sae.load(door_runs[name]).config, dynamic_sae.load(back).config
    assert again.architecture == kept
    assert {key: again.options.get(key) for key in ("k", "parts")} == {key: there.options.get(key) for key in ("k", "parts")}


@pytest.mark.parametrize("name", MADE)
def test_every_class_is_imported_and_comes_back(name, tmp_path):
    source, run, again = made(name, tmp_path / "source"), tmp_path / "run", tmp_path / "again"
    done(*package("import", source, run, "--train", TRAIN, "--held-out", HELD_OUT))
    expected = theirs(loaded(source))
    same(f"random {name}", "import", ours(run), expected)
    sae_eval(run, "--no-html")
    report = dynamic_sae.report(run)
    found = {entry["name"]: entry["value"] for entry in report["toolkits"] if entry["owner"].startswith("dictionary_learning")}
    assert found["l0"] == pytest.approx((expected[0] != 0).sum(-1).double().mean().item(), rel=1e-6)
    origin = json.loads((run / "import.json").read_text())
    assert (origin["from"], origin["program"], origin["weights_file"]) == (str(source), "dictionary_learning", "ae.pt")
    assert origin["metadata"]["model_name"] == "gpt2" and origin["metadata"]["hook_name"] == "blocks.8.hook_resid_post"
    done(*package("export", "--to", "dictionary_learning", run, again))
    x_hat = theirs(loaded(again))[1]
    assert (x_hat - expected[1]).abs().max() < 1e-5
    trainer = json.loads((again / "config.json").read_text())["trainer"]
    assert (trainer["lm_name"], trainer["layer"], trainer["submodule_name"]) == ("gpt2", 8, "resid_post_layer_8")


@pytest.mark.parametrize("name", MADE)
def test_saelens_loads_what_was_made_of_a_dictionary(name, tmp_path):
    sae_lens = pytest.importorskip("sae_lens", reason="sae_lens is not installed")
    source = made(name, tmp_path / "source")
    assert door.to_saelens(source, tmp_path / "saelens") == []
    same(f"random {name}", "to_saelens", theirs(sae_lens.SAE.load_from_disk(tmp_path / "saelens")), theirs(loaded(source)))
    if name in ("BatchTopKSAE", "MatryoshkaBatchTopKSAE"):
        door.to_saelens(source, tmp_path / "training", keep_k=True)
        sae = sae_lens.TrainingSAE.load_from_disk(tmp_path / "training")
        assert sae.cfg.k == K and sae.topk_threshold == pytest.approx(0.02)


def test_a_threshold_that_was_never_measured(tmp_path):
    source = made("BatchTopKSAE", tmp_path / "source", threshold=-1.0)
    (note,) = door.to_saelens(source, tmp_path / "saelens", keep_k=True)
    assert "16 largest" in note
    done(*package("import", source, tmp_path / "run"))
    latents, _ = ours(tmp_path / "run")
    assert dynamic_sae.load(tmp_path / "run").config.options["k"] == K
    assert (latents != 0).sum(-1).max() == K < (theirs(loaded(source))[0] != 0).sum(-1).double().mean()


@pytest.mark.parametrize("form", ["topk", "jumprelu"])
def test_sparsemax_is_refused_or_approximated(form, door_runs, tmp_path):
    out = tmp_path / "out"
    message = refused(*package("export", "--to", "dictionary_learning", door_runs["attention"], out))
    assert "sparsemax" in message and "--approximate" in message and not out.exists()
    done(*package("export", "--to", "dictionary_learning", "--approximate", form, door_runs["attention"], out))
    sae = loaded(out)
    assert type(sae).__name__ == {"topk": "AutoEncoderTopK", "jumprelu": "JumpReluAutoEncoder"}[form]
    certificate = json.loads((out / "certificate.json").read_text())
    (_, x_hat), (latents, y_hat) = ours(door_runs["attention"]), theirs(sae)
    assert certificate["fvu"]["model"] == pytest.approx(fvu(rows(), x_hat), abs=1e-5)
    assert certificate["fvu"]["written"] == pytest.approx(fvu(rows(), y_hat), abs=1e-4)
    assert certificate["l0"]["written"] == pytest.approx((latents != 0).sum(-1).double().mean().item(), abs=0.01)
    assert certificate["x_hat"]["largest"] == pytest.approx((x_hat - y_hat).norm(dim=-1).max().item(), rel=0.05)


def test_refined_topk_is_refused(door_runs, tmp_path):
    message = refused(*package("export", "--to", "dictionary_learning", door_runs[REFINED], tmp_path / "out"))
    assert "refines the latents" in message and "--approximate" in message and not (tmp_path / "out").exists()


def test_other_formats_are_handed_on(door_runs, tmp_path):
    done(*package("export", "--to", "saelens", "--model-name", "gpt2", door_runs["topk"], tmp_path / "out"))
    assert json.loads((tmp_path / "out" / "cfg.json").read_text())["metadata"]["model_name"] == "gpt2"
    done(*package("import", tmp_path / "out", tmp_path / "back"))
    same("topk", "python -m dynamic_sae", ours(door_runs["topk"]), ours(tmp_path / "back"), tied(door_runs["topk"]))


@pytest.mark.parametrize(("options", "expected"), [({"apply_b_dec_to_input": False}, "StandardSAE"), ({"k": 16}, "TopKSAE")])
def test_keys_of_saelens_are_folded(options, expected, tmp_path):
    """An encoder of x and not x - b_dec, and a TopK that selects by scores times the length of the decoder's row."""
    sae_lens = pytest.importorskip("sae_lens", reason="sae_lens is not installed")
    from sae_lens.saes.standard_sae import StandardSAE, StandardSAEConfig
    from sae_lens.saes.topk_sae import TopKSAE, TopKSAEConfig

    torch.manual_seed(0)
    if "k" in options:
        sae = TopKSAE(TopKSAEConfig(d_in=WIDTH, d_sae=LATENTS, rescale_acts_by_decoder_norm=True, **options))
    else:
        sae = StandardSAE(StandardSAEConfig(d_in=WIDTH, d_sae=LATENTS, **options))
    with torch.no_grad():
        sae.b_dec.copy_(0.05 * torch.randn(WIDTH))
        sae.W_dec.mul_(1 + torch.rand(LATENTS, 1))
    sae.save_model(tmp_path / "saelens")
    assert type(sae_lens.SAE.load_from_disk(tmp_path / "saelens")).__name__ == expected
    door.from_saelens(tmp_path / "saelens", tmp_path / "out")
    same(f"random {expected}", "from_saelens", theirs(sae), theirs(loaded(tmp_path / "out")))


def test_a_row_of_zeros_does_not_break_it(tmp_path):
    from sae_lens.saes.standard_sae import StandardSAE, StandardSAEConfig

    torch.manual_seed(0)
    sae = StandardSAE(StandardSAEConfig(d_in=WIDTH, d_sae=LATENTS))
    with torch.no_grad():
        sae.W_dec[3] = 0
        sae.b_dec.copy_(0.05 * torch.randn(WIDTH))
    sae.save_model(tmp_path / "saelens")
    door.from_saelens(tmp_path / "saelens", tmp_path / "out")
    assert type(loaded(tmp_path / "out")).__name__ == "AutoEncoderNew"
    same("random StandardSAE", "AutoEncoderNew", theirs(sae), theirs(loaded(tmp_path / "out")))


class Harmful:
    """A pickle that writes a file when it is opened the usual way."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch '{self.path}'",)


def test_code_in_a_pickle_is_not_run(tmp_path):
    source, trace = made("AutoEncoder", tmp_path / "source"), tmp_path / "trace"
    torch.save({"bias": Harmful(trace)}, source / "ae.pt")
    torch.load(source / "ae.pt", weights_only=False)
    assert trace.exists(), "the pickle must be harmful for the test to mean something"
    trace.unlink()
    message = refused(*package("import", source, tmp_path / "run"))
    assert "ae.pt" in message and "state_dict" in message
    assert not trace.exists() and not (tmp_path / "run").exists()
    message = refused(*package("import", source / "ae.pt", tmp_path / "run"))  # the file in place of its directory: sae-eval's
    assert "pickle" in message and not trace.exists()


@pytest.mark.parametrize(("change", "said"), [
    ({"encoder.weight": None}, ['"encoder.weight"', "missing"]),
    ({"encoder.bias": torch.zeros(5)}, ['"encoder.bias"', "[5]", "M = 256"]),
    ({"W_skip": torch.zeros(5)}, ['"W_skip"', "not part"]),
    ({"b_dec": torch.full((WIDTH,), float("inf"))}, ['"b_dec"', "NaN or infinity"]),
    ({"k": torch.tensor(17)}, ['"trainer.k"', "16", "17"]),
])
def test_bad_tensors_are_named(change, said, tmp_path):
    source = made("AutoEncoderTopK", tmp_path / "source")
    state = torch.load(source / "ae.pt", weights_only=True) | change
    torch.save({name: values for name, values in state.items() if values is not None}, source / "ae.pt")
    message = refused(*package("import", source, tmp_path / "run"))
    assert all(part in message for part in [str(source), *said]), message


@pytest.mark.parametrize(("content", "said"), [
    ('{"trainer": {"dict_class": "CrossCoder"}}', ['"trainer.dict_class"', "CrossCoder"]),
    ('{"model": 1}', ['"trainer.dict_class"', "missing"]),
    ("[", ["not valid JSON"]),
    (None, ["cannot be read"]),
])
def test_bad_configs_are_named(content, said, tmp_path):
    source = made("AutoEncoder", tmp_path / "source")
    if content is None:
        (source / "config.json").unlink()
    else:
        (source / "config.json").write_text(content)
    message = refused(*package("import", source, tmp_path / "run"))
    assert all(part in message for part in [str(source / "config.json"), *said]), message


def test_nothing_is_overwritten(door_runs, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("kept")
    message = refused(*package("export", "--to", "dictionary_learning", door_runs["topk"], tmp_path / "out"))
    assert "nothing is overwritten" in message and [entry.name for entry in (tmp_path / "out").iterdir()] == ["mine.txt"]


def test_batch_topk_has_one_threshold(tmp_path):
    from sae_lens.saes.jumprelu_sae import JumpReLUSAE, JumpReLUSAEConfig

    sae = JumpReLUSAE(JumpReLUSAEConfig(d_in=WIDTH, d_sae=LATENTS))
    with torch.no_grad():
        sae.threshold.copy_(torch.rand(LATENTS))
    sae.save_model(tmp_path / "saelens")
    with pytest.raises(DynamicSaeError, match="thresholds of their own"):
        door.from_saelens(tmp_path / "saelens", tmp_path / "out", k=4)
