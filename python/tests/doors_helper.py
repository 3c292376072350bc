"""What the tests of SAELens, dictionary_learning and sparsify share: trained runs, rows, and a table of what was compared."""

import functools
import importlib.util
import json
import os
import pathlib
import shutil
import subprocess
import sys
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")

ROOT = pathlib.Path(__file__).resolve().parents[2]
SAMPLE = ROOT / "data" / "wordnet_minilm"
TRAIN, HELD_OUT = SAMPLE / "train.safetensors", SAMPLE / "heldout.safetensors"
K = 16
CLOSE = 1e-5  # largest difference of x_hat: float32, rows of length one
TIE, MOST_TIES = 1e-6, 5  # scores that differ by a millionth are one in float32; TopK may then take either
# Runs beside those of conftest.py: what the formats must fold in and those have not.
MORE: dict[str, list[str]] = {
    "attention_biased": ["architecture=attention", "pre_bias=true", "encoder_bias=true"],
    "topk_projected": ["architecture=topk", f"k={K}", "value_projection=true", "key_projection=true", "query_projection=true"],
    "jumprelu_uncentred": ["architecture=jumprelu", "pre_bias=false"],
}
SPARSEMAX = ["attention", "released", "paper", "mlp_sparsemax", "attention_biased"]
PLAIN = [
    "attention_relu", "relu", "topk", "topk_projected", "batch_topk", "matryoshka", "jumprelu", "jumprelu_uncentred", "gated"
]
REFINED = "topk_refined"  # no format but ours holds it


def environment() -> dict[str, str]:
    """The environment of a program, which can import this package; conftest.py has put the programs on the PATH."""
    found = importlib.util.find_spec("dynamic_sae")
    assert found is not None and found.origin is not None
    source = str(pathlib.Path(found.origin).parents[1])
    return os.environ | {"PYTHONPATH": os.pathsep.join([source, os.environ.get("PYTHONPATH", "")]), "OMP_NUM_THREADS": "1"}


def program(name: str) -> str:
    """The path of one of our programs; skips the test if there is none."""
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not on the PATH; build it and set DYNAMIC_SAE_BINARIES to its directory")
    return found


def run(*command: str | pathlib.Path) -> subprocess.CompletedProcess[str]:
    """Runs a command, whatever its exit code."""
    return subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False, env=environment())


def done(*command: str | pathlib.Path) -> str:
    """What a command prints, which must succeed."""
    result = run(*command)
    assert result.returncode == 0, f"{command}: exit code {result.returncode}\n{result.stdout}\n{result.stderr}"
    return result.stdout


def refused(*command: str | pathlib.Path) -> str:
    """The message of a command that must find fault with what it was given."""
    result = run(*command)
    assert result.returncode == 2, f"{command}: exit code {result.returncode}\n{result.stdout}\n{result.stderr}"
    return result.stderr


def sae_eval(*arguments: str | pathlib.Path) -> str:
    """What sae-eval prints, which must succeed."""
    return done(program("sae-eval"), *arguments)


def package(*arguments: str | pathlib.Path) -> list[str | pathlib.Path]:
    """A command of ``python -m dynamic_sae``."""
    program("sae-eval")
    return [sys.executable, "-m", "dynamic_sae", *arguments]


@pytest.fixture(scope="session")
def door_runs(runs: dict[str, pathlib.Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, pathlib.Path]:
    """The runs of conftest.py and those of :data:`MORE`, by name."""
    directory = tmp_path_factory.mktemp("more-runs")
    config = directory / "config.toml"
    config.write_text(
        f"[data]\ntrain = '{TRAIN}'\nheld_out = '{HELD_OUT}'\n"
        "[model]\nn_latents = 256\n[training]\nsteps = 60\nbatch_size = 256\n",
        encoding="utf-8",
    )
    for name, options in MORE.items():
        settings = [f"run={name}", f"runs_dir={directory}", *(f"model.{option}" for option in options)]
        done(program("sae-train"), config, "--plain", "--threads", "1", *(part for one in settings for part in ("--set", one)))
    return runs | {name: directory / name for name in MORE}


@functools.cache
def rows(path: pathlib.Path = HELD_OUT) -> Any:
    """The activations of a file, ``[rows, d]``."""
    from safetensors.torch import load_file

    return load_file(path)["activations"].float()


def fvu(x: Any, x_hat: Any) -> float:
    """Part of the variance of x that x_hat does not explain."""
    x, x_hat = x.double(), x_hat.double()
    return float(((x - x_hat) ** 2).sum() / ((x - x.mean(0)) ** 2).sum())


def tied(path: pathlib.Path) -> Any:
    """Mask of the held-out rows on which a TopK model cannot tell its k-th score from the next in float32: ``[rows]``."""
    import dynamic_sae
    from dynamic_sae import equations

    sae = dynamic_sae.load(path).double()
    if "k" not in sae.config.options or "threshold" in sae.weights:
        return torch.zeros(len(rows()), dtype=torch.bool)
    with torch.no_grad():
        x0 = rows().double() - sae.weights.get("b_dec", 0.0)
        best = equations.scores(x0 / equations.row_norms(x0, sae.config), sae.weights, sae.config).clip(min=0).topk(
            sae.config.options["k"] + 1).values
    return best[:, -2] - best[:, -1] <= TIE * best[:, -1]


def same(name: str, what: str, ours: tuple[Any, Any], theirs: tuple[Any, Any], ties: Any = None) -> None:
    """Asserts that two dictionaries do the same on rows, and notes what was found.

    Args:
        name: the model.
        what: the class that it was compared with.
        ours: latents ``[rows, M]`` and x_hat ``[rows, d]`` of the model, of the held-out rows of the sample.
        theirs: the same of what was made of it.
        ties: mask of rows that are left out, of which there may be a few (:func:`tied`).
    """
    ties = torch.zeros(len(rows()), dtype=torch.bool) if ties is None else ties
    (a, x_hat), (b, y_hat) = ours, theirs
    largest = float((x_hat.double() - y_hat.double()).abs().max(dim=-1).values[~ties].max())
    differing = int(((a != 0) != (b != 0))[~ties].sum())
    found = {"model": name, "class": what, "fvu_ours": fvu(rows(), x_hat), "fvu_theirs": fvu(rows(), y_hat), "largest": largest,
             "differing": differing, "ties": int(ties.sum())}
    note(found)
    assert torch.isfinite(y_hat).all()
    assert (a != 0).any(dim=-1).float().mean() > 0.9, "a dictionary that does nothing proves nothing"
    assert ties.sum() <= MOST_TIES, found
    assert largest <= CLOSE, found
    assert differing == 0, found


def note(found: dict[str, Any]) -> None:
    """Adds a line to the table of tools/doors.sh."""
    if "SAE_DOORS_TABLE" in os.environ:
        with open(os.environ["SAE_DOORS_TABLE"], "a", encoding="utf-8") as table:
            table.write(json.dumps(found) + "\n")


def ours(path: pathlib.Path, x: Any = None) -> tuple[Any, Any]:
    """Latents and x_hat of a run or saved model of ours."""
    import dynamic_sae

    with torch.no_grad():
        sae = dynamic_sae.load(path)
        latents = sae.encode(rows() if x is None else x)
        return latents, sae.decode(latents)


def theirs(sae: Any, x: Any = None) -> tuple[Any, Any]:
    """Latents and x_hat of a class with encode and decode."""
    with torch.no_grad():
        latents = sae.encode(rows() if x is None else x)
        return latents, sae.decode(latents)
