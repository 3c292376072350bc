"""dynamic_sae.train: what it hands to sae-train, and what it says when it fails or is stopped."""

import json
import signal
import subprocess
import sys
import textwrap

import numpy as np
import pytest
from conftest import SAMPLE
from safetensors.numpy import load_file

import dynamic_sae
from dynamic_sae import ActivationWriter, DynamicSaeError, saved, training
from dynamic_sae import programs as found_programs

SHORT = dict(n_latents=128, steps=30, batch_size=256, threads=1)


@pytest.fixture(scope="module")
def x():
    return load_file(SAMPLE / "train.safetensors")["activations"]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch, programs):
    monkeypatch.chdir(tmp_path)


def config_of(run):
    return (run / "config.toml").read_text()


def test_rows_in_memory(x, tmp_path, capsys):
    sae = dynamic_sae.train(x, run="first", held_out=0.2, architecture="topk", k=8, seed=3, **SHORT)
    assert sae.run_dir.resolve() == tmp_path / "runs" / "first"
    assert (sae.config.architecture, sae.config.options["k"], sae.config.seed) == ("topk", 8, 3)
    text = config_of(sae.run_dir)
    assert "fraction = 0.2" in text
    assert "step 20/30" in capsys.readouterr().out
    index = json.loads((tmp_path / "runs" / "first.rows" / "train" / "index.json").read_text())
    assert (index["rows"], index["width"], index["dtype"]) == (len(x), 384, "F16")
    assert np.array_equal(load_file(tmp_path / "runs" / "first.rows" / "train" / "shard-00000.safetensors")["activations"], x)


def test_a_path_is_as_good_as_its_rows(x, tmp_path):
    """The same rows from memory, from a path and from a writer give the same model, bit for bit."""
    path = SAMPLE / "train.safetensors"
    with ActivationWriter("written") as writer:
        for start in range(0, len(x), 777):
            writer.add(x[start : start + 777])
    held_out = SAMPLE / "heldout.safetensors"
    rows_of_held_out = load_file(held_out)["activations"]
    ways = (("a/memory", x, rows_of_held_out), ("a/path", path, str(held_out)), ("a/writer", "written", held_out))
    for run, rows, other in ways:
        dynamic_sae.train(rows, run=run, held_out=other, progress=False, **SHORT)
    models = [(tmp_path / "a" / name / "model" / "sae.safetensors").read_bytes() for name in ("memory", "path", "writer")]
    assert models[0] == models[1] == models[2]


def test_all_ways_to_name_a_key(x):
    sae = dynamic_sae.train(
        x, run="keys", model={"architecture": "matryoshka", "parts": (0.25, np.float64(0.5))}, training={"lr": 0.001},
        held_out={"rows": [0, 500]}, k=np.int64(4), max_norm="none", progress=False, **{"training.log_every": 7}, **SHORT,
    )
    text = config_of(sae.run_dir)
    lines = ('architecture = "matryoshka"', "parts = [0.25, 0.5]", "lr = 0.001", "k = 4", 'max_norm = "none"', "log_every = 7")
    for line in lines:
        assert line in text, line
    assert "rows = [" in text


def test_every_flat_name_means_one_key():
    """No name stands in two of the sections that flat names are looked up in; all architectures' own keys are found."""
    for architecture in saved.OWN:
        shown = found_programs.output_of("sae-train", "--init", architecture)
        names = [line.removeprefix("# ").split(" = ")[0].split(": ")[0] for line in shown.split("[eval")[0].splitlines()]
        names = [name for name in names if name.isidentifier() and name == name.lower()]
        assert sorted(names) == sorted(training.keys_of(architecture))
    assert training.whole_name("k", "attention") == "model.k"
    assert training.whole_name("sparsity_coefficient", "topk") == "training.sparsity_coefficient"
    assert training.whole_name("run", "topk") == "run"
    assert training.whole_name("max_norm", "topk") == "data.max_norm"


def test_mistakes(x, tmp_path):
    for changes, words in (
        ({"step": 3}, "step: no config has this key; is steps meant"),
        ({"qqqqq": 3}, "sae-train --init attention"),
        ({"training.bla": 3}, "training.bla = 3: there is no such key; known here: `steps`"),
        ({"k": 3}, 'model.k = 3: model.architecture = "attention" has no use for this key'),
        ({"lr": "fast"}, "training.lr"),
        ({"architecture": "novel"}, "use one of attention"),
        ({"lr": object()}, "training.lr: object is no value of a config"),
        ({"n_latents": None}, "n_latents"),
        ({"rows": "nowhere"}, "nowhere"),
        ({"rows": np.zeros((4, 3), int)}, "expected floats"),
        ({"rows": [[1.0]]}, "or a path"),
        ({"rows": np.full((50, 3), np.nan, np.float32)}, "row 0 (row 0 of this batch): activation 0 is not finite"),
    ):
        with pytest.raises(DynamicSaeError) as error:
            dynamic_sae.train(**dict(rows=x[:3000], run="wrong") | SHORT | changes)
        assert words in str(error.value), changes
        assert not (tmp_path / "runs" / "wrong").exists()


def test_resume(x, tmp_path):
    options = dict(run="long", progress=False, n_latents=64, batch_size=256, threads=1)
    dynamic_sae.train(x, steps=20, **options)
    with pytest.raises(DynamicSaeError, match="this run exists; pass resume=True"):
        dynamic_sae.train(x, steps=20, **options)
    dynamic_sae.train(x, steps=40, resume=True, **options)
    last = json.loads((tmp_path / "runs" / "long" / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["step"] == 40
    with pytest.raises(DynamicSaeError, match="other rows than those given now"):
        dynamic_sae.train(x * 2, steps=40, resume=True, **options)
    assert sorted(path.name for path in (tmp_path / "runs" / "long.rows").iterdir()) == ["train"]


def test_start_from_a_model(x):
    first = dynamic_sae.train(x, run="first", progress=False, **SHORT)
    second = dynamic_sae.train(x, run="second", start=first.run_dir, progress=False, steps=1, batch_size=256, threads=1)
    assert second.config.n_latents == 128
    before, after = (load_file(sae.run_dir / "model" / "sae.safetensors")["W_dec"] for sae in (first, second))
    assert 0 < np.abs(before - after).max() < 1e-2


def test_an_interrupt_reaches_the_program_which_keeps_a_checkpoint(tmp_path, capsys):
    script = f"""
        import sys
        sys.path[:0] = {sys.path!r}
        import dynamic_sae
        try:
            rows = {str(SAMPLE / "train.safetensors")!r}
            dynamic_sae.train(rows, run="long", n_latents=512, steps=1_500, batch_size=256, threads=1)
        except KeyboardInterrupt:
            print("interrupted", flush=True)
    """
    # A test runner in the background may ignore SIGINT, and its children inherit that.
    heeds = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)  # noqa: E731
    process = subprocess.Popen([sys.executable, "-c", textwrap.dedent(script)], stdout=subprocess.PIPE, text=True, preexec_fn=heeds)
    seen = []
    for line in process.stdout:
        seen.append(line)
        if line.split("/")[0].split() == ["step", "40"]:  # the number is padded
            break
    process.send_signal(signal.SIGINT)
    seen += process.stdout.read().splitlines(keepends=True)
    assert process.wait(timeout=60) == 0
    text = "".join(seen)
    assert "resume=True continues runs/long" in text
    assert text.rstrip().endswith("interrupted")
    assert list((tmp_path / "runs" / "long" / "checkpoint").iterdir())
    dynamic_sae.train(SAMPLE / "train.safetensors", run="long", resume=True, n_latents=512, steps=1_500, batch_size=256, threads=1)
    shown = capsys.readouterr().out
    assert "continuing after step" in shown
    assert "step 1500: " in shown


def test_a_notebook_replaces_the_line_of_the_progress(x, capsys, monkeypatch):
    monkeypatch.setattr(training, "in_notebook", lambda: True)
    dynamic_sae.train(x, run="shown", log_every=10, **SHORT | {"steps": 100})
    out = capsys.readouterr().out
    assert out.count("\rstep ") == 10
    assert "\nheld out at step 100" in out
    assert [line.count("\r") for line in out.split("\n") if "/100 " in line] == [10]  # all in one line


def test_without_the_program(x, monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    monkeypatch.setattr(found_programs.sysconfig, "get_path", lambda name: "/nowhere")
    training.keys_of.cache_clear()
    with pytest.raises(DynamicSaeError, match="sae-train: not found beside.*pip install ./python"):
        dynamic_sae.train(x, run="none", **SHORT)


def test_a_program_without_a_message():
    assert "printed nothing" in str(found_programs.failure("sae-train", 3, []))
    assert str(found_programs.failure("sae-train", 2, ["a", "error: no", "more"])) == "sae-train (exit code 2): no\nmore"
