"""``python -m dynamic_sae export`` and ``import``: sae-eval's, and dictionary_learning beside its formats.

dictionary_learning keeps pickles, which sae-eval never opens. So an export goes through a temporary directory in SAELens' format,
which sae-eval writes, and an import through one that it reads; :mod:`dynamic_sae.dictionary_learning` does the rest. Every other
format is handed on to sae-eval as it is.
"""

import argparse
import json
import math
import pathlib
import shutil
import subprocess
import sys
import tempfile
from typing import Any

from . import saved
from .errors import DynamicSaeError
from .programs import program

FORMAT = "dictionary_learning"
CERTIFICATE = "certificate.json"
DESCRIPTION = "Exchange dictionaries with SAELens, sparsify and dictionary_learning."


def sae_eval(arguments: list[str]) -> None:
    """Runs sae-eval; its messages are the user's. Ends this program with its exit code if it fails."""
    code = subprocess.run([program("sae-eval"), *arguments], check=False).returncode
    if code:
        raise SystemExit(code)


def sae_eval_between(arguments: list[str], between: pathlib.Path, instead: pathlib.Path) -> None:
    """Runs sae-eval on the temporary directory ``between``, for which its messages say ``instead``."""
    done = subprocess.run([program("sae-eval"), *arguments], check=False, capture_output=True, text=True)
    for stream, text in ((sys.stdout, done.stdout), (sys.stderr, done.stderr)):
        text = text.replace(str(between), str(instead)).replace("SAELens", FORMAT)
        stream.write(text.replace(" and sparsity.safetensors", ""))
    if done.returncode:
        raise SystemExit(done.returncode)


def export(arguments: argparse.Namespace, rest: list[str]) -> None:
    """Writes the model of a run for another program."""
    if arguments.to != FORMAT:
        sae_eval(["export", "--to", arguments.to, arguments.run, arguments.dir, *rest])
        return
    from . import dictionary_learning

    target = pathlib.Path(arguments.dir)
    dictionary_learning.check_free(target)
    k, widths = (None, None) if arguments.approximate else batch_of(arguments.run)
    with tempfile.TemporaryDirectory() as temporary:
        between = pathlib.Path(temporary) / "saelens"
        if not arguments.approximate:
            refuse_sparsemax(arguments.run)
        sae_eval_between(["export", "--to", "saelens", arguments.run, str(between), *rest], between, target)
        dictionary_learning.from_saelens(between, target, k, widths)
        if (between / CERTIFICATE).is_file():
            shutil.copyfile(between / CERTIFICATE, target / CERTIFICATE)
    print(f"class: {dictionary_learning.read_config(target / dictionary_learning.CONFIG)[0]}")


def refuse_sparsemax(run: str) -> None:
    """Raises if the model selects its latents in a way that dictionary_learning has no class for."""
    config, _ = saved.read_config(saved.model_directory(run) / saved.CONFIG)
    if config.architecture in ("attention", "mlp_sparsemax"):
        raise DynamicSaeError(f"{run}: {config.architecture} selects latents with sparsemax, and {FORMAT} has no class that "
                              "does; export the nearest that it holds with --approximate topk or --approximate jumprelu")


def batch_of(run: str) -> tuple[int | None, list[int] | None]:
    """k of a BatchTopK or Matryoshka whose threshold was measured, and the sizes of Matryoshka's dictionaries."""
    config, weights = saved.read(run)
    if config.architecture not in ("batch_topk", "matryoshka") or float(weights["threshold"][0]) == 0.0:
        return None, None
    parts = config.options.get("parts")
    widths = None if parts is None else [math.ceil(part * config.n_latents) for part in parts]
    return int(config.options["k"]), widths


def import_(arguments: argparse.Namespace, rest: list[str]) -> None:
    """Makes a run of another program's dictionary."""
    from . import dictionary_learning

    source, run = pathlib.Path(arguments.dir), pathlib.Path(arguments.run)
    if not dictionary_learning.recognises(source):
        sae_eval(["import", arguments.dir, arguments.run, *rest])
        return
    dictionary_learning.check_free(run)
    with tempfile.TemporaryDirectory() as temporary:
        between = pathlib.Path(temporary) / "saelens"
        for note in dictionary_learning.to_saelens(source, between, keep_k=True):
            print(f"note: {source / dictionary_learning.WEIGHTS}: {note}", file=sys.stderr)
        sae_eval_between(["import", str(between), arguments.run, *rest], between, source)
        name_origin(run, between.resolve(), source.resolve())


def name_origin(run: pathlib.Path, between: pathlib.Path, source: pathlib.Path) -> None:
    """Makes the files of a run name the dictionary that it was made of, and not the directory between."""
    from blake3 import blake3

    from . import dictionary_learning

    found: dict[str, Any] = json.loads((run / "import.json").read_text(encoding="utf-8"))
    checksum = blake3((source / dictionary_learning.WEIGHTS).read_bytes()).hexdigest()
    renamed = {json.dumps(str(between)): json.dumps(str(source), ensure_ascii=False), found["weights_blake3"]: checksum}
    for name in ("import.json", "config.toml", "provenance.json"):
        path = run / name
        if path.is_file():
            text = path.read_text(encoding="utf-8")
            for old, new in renamed.items():
                text = text.replace(old, new)
            path.write_text(text.replace(" (SAELens), whose", f" ({FORMAT}), whose"), encoding="utf-8")
    found = json.loads((run / "import.json").read_text(encoding="utf-8"))
    found |= {"program": FORMAT, "weights_file": dictionary_learning.WEIGHTS}
    dictionary_learning.write_json(run / "import.json", found)


def parser() -> argparse.ArgumentParser:
    """The options of this program."""
    own = argparse.ArgumentParser("python -m dynamic_sae", description=DESCRIPTION, allow_abbrev=False)
    commands = own.add_subparsers(dest="command", required=True)
    out = commands.add_parser("export", help="write a trained model as a dictionary of another program", allow_abbrev=False)
    out.add_argument("run", metavar="RUN", help="the run directory, for example runs/quickstart, or a saved model")
    out.add_argument("dir", metavar="DIR", help="the directory to write: a new or an empty one")
    out.add_argument("--to", required=True, choices=["saelens", "sparsify", FORMAT], help="the program that is to read it")
    out.add_argument("--approximate", choices=["topk", "jumprelu"], help="write the nearest of this kind; measure the change")
    for option in ("train", "held-out"):
        out.add_argument(f"--{option}", metavar="PATH", help="the run's activations, if they have moved")
    for option in ("model-name", "hook-name", "context-size", "prepend-bos", "dataset-path", "threads"):
        out.add_argument(f"--{option}", metavar="VALUE", help="as sae-eval export has it")
    into = commands.add_parser("import", help="make a run directory of a dictionary of another program", allow_abbrev=False)
    into.add_argument("dir", metavar="DIR", help="the directory of the dictionary")
    into.add_argument("run", metavar="RUN", help="the run directory to make: a new or an empty one")
    for option in ("train", "held-out"):
        into.add_argument(f"--{option}", metavar="PATH", help="activations to evaluate the dictionary with")
    for option in ("tensor", "layer"):
        into.add_argument(f"--{option}", metavar="VALUE", help="as sae-eval import has it")
    into.add_argument("--drop-first-token", action="store_true", help="as sae-eval import has it")
    return own


def passed_on(arguments: argparse.Namespace) -> list[str]:
    """The options that sae-eval gets, too."""
    given = {name: value for name, value in vars(arguments).items() if name not in ("command", "run", "dir", "to")}
    pairs = [(f"--{name.replace('_', '-')}", value) for name, value in given.items() if value not in (None, False)]
    return [part for option, value in pairs for part in ([option] if value is True else [f"{option}={value}"])]


def main() -> int:
    """Runs a command; returns the exit code: 0 done, 2 something is wrong with what was given, or that of sae-eval."""
    arguments = parser().parse_args()
    run = {"export": export, "import": import_}[arguments.command]
    try:
        run(arguments, passed_on(arguments))
    except DynamicSaeError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
