"""What the tests share: the programs, the sample data, and a short run of every architecture.

The programs are those of DYNAMIC_SAE_BINARIES, those beside this Python, or those on the PATH. The package is the installed one
or, if it is not installed, the one beside these tests.
"""

import importlib.util
import os
import pathlib
import shutil
import subprocess
import sys

import numpy as np
import pytest

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
SAMPLE = REPOSITORY / "data" / "wordnet_minilm"

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["PATH"] = os.pathsep.join(
    [*filter(None, [os.environ.get("DYNAMIC_SAE_BINARIES")]), str(pathlib.Path(sys.executable).parent), os.environ["PATH"]]
)
if importlib.util.find_spec("dynamic_sae") is None:
    sys.path.insert(0, str(REPOSITORY / "python" / "src"))

# The model of each run: its architecture, and what differs from the defaults.
MODELS = {
    "attention": ["preset=default"],
    "released": ["architecture=attention", "preset=released"],
    "paper": ["architecture=attention", "preset=paper"],
    "attention_relu": [],
    "mlp_sparsemax": [],
    "relu": [],
    "topk": ["k=16"],
    "topk_refined": ["architecture=topk", "k=16", "refinement=2"],
    "batch_topk": ["k=16"],
    "jumprelu": [],
    "gated": [],
    "matryoshka": ["k=16"],
}


def run(*command: object) -> str:
    """Runs a program and returns what it printed."""
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}: {done.stderr}"
    return done.stdout


@pytest.fixture(scope="session")
def programs():
    """The programs' directory is on the PATH; without them a test is skipped."""
    missing = [name for name in ("sae-train", "sae-eval", "sae-data") if shutil.which(name) is None]
    if missing:
        pytest.skip(f"{', '.join(missing)} not found: set DYNAMIC_SAE_BINARIES or the PATH")


@pytest.fixture(scope="session")
def held_out():
    """The held-out rows of the sample ``[2404, 384]``, float32."""
    from safetensors.numpy import load_file

    return load_file(SAMPLE / "heldout.safetensors")["activations"].astype(np.float32)


@pytest.fixture(scope="session")
def runs(programs, tmp_path_factory):
    """The directory of a run of 60 steps and 256 latents per entry of MODELS, by name."""
    directory = tmp_path_factory.mktemp("runs")
    config = directory / "config.toml"
    config.write_text(
        f"[data]\ntrain = '{SAMPLE / 'train.safetensors'}'\nheld_out = '{SAMPLE / 'heldout.safetensors'}'\n"
        "[model]\nn_latents = 256\n[training]\nsteps = 60\nbatch_size = 256\n"
    )
    for name, options in MODELS.items():
        named = any(option.startswith("architecture=") for option in options)
        settings = [f"model.{option}" for option in (options if named else [f"architecture={name}", *options])]
        arguments = [part for setting in (f"run={name}", f"runs_dir={directory}", *settings) for part in ("--set", setting)]
        run("sae-train", config, "--plain", "--threads", 1, *arguments)
    return {name: directory / name for name in MODELS}


@pytest.fixture(scope="session")
def encoded(runs, tmp_path_factory):
    """The directory that ``sae-eval encode --reconstruct`` has written of the held-out rows, by the run's name."""
    directory = tmp_path_factory.mktemp("codes")
    for name, path in runs.items():
        run("sae-eval", "encode", path, SAMPLE / "heldout.safetensors", directory / name, "--reconstruct", "--threads", 1)
    return {name: directory / name for name in runs}
