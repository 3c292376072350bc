#!/usr/bin/env bash
# All tests of the Python package with the packages that it opens doors to; among them every round trip: our models to SAELens,
# dictionary_learning and sparsify, and theirs to us.
#
#     tools/doors.sh [options of pytest]
#
# SAE_DOORS_PYTHON is the virtual environment (default: ~/.cache/sae-doors/python, outside the clone); it is made, or brought up to
# python/tests/requirements-doors.txt, if it is not as that file says. DYNAMIC_SAE_BINARIES is the directory of sae-train, sae-eval
# and sae-data; without it they are built. The table at the end: what each model became, FVU of both sides on the 2,404 held-out
# rows of data/wordnet_minilm, the largest difference of x_hat, and how many entries of the latents are active on one side alone.
set -euo pipefail
cd "$(dirname "$0")/.."

venv="${SAE_DOORS_PYTHON:-$HOME/.cache/sae-doors/python}"
requirements=python/tests/requirements-doors.txt
as_required() {
    "$venv/bin/python" - "$requirements" <<'PYTHON'
import importlib.metadata
import sys

pins = [line.split("==") for line in map(str.strip, open(sys.argv[1])) if "==" in line and not line.startswith(("#", "-"))]
for name, version in pins:
    try:
        found = importlib.metadata.version(name).partition("+")[0]
    except importlib.metadata.PackageNotFoundError:
        found = "none"
    if found != version:
        sys.exit(f"{name} is {found}, {version} is needed")
PYTHON
}
[ -x "$venv/bin/python" ] || python3 -m venv "$venv"
as_required || "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --requirement "$requirements"

if [ -z "${DYNAMIC_SAE_BINARIES:-}" ]; then
    cargo build --locked -p sae-train -p sae-eval -p sae-data # the one profile of the workspace
    DYNAMIC_SAE_BINARIES="${CARGO_TARGET_DIR:-target}/debug"
fi
DYNAMIC_SAE_BINARIES="$(cd "$DYNAMIC_SAE_BINARIES" && pwd)"
SAE_DOORS_TABLE="$(mktemp)"
export DYNAMIC_SAE_BINARIES SAE_DOORS_TABLE HF_HUB_OFFLINE=1
trap 'rm -f "$SAE_DOORS_TABLE"' EXIT

failed=0
"$venv/bin/python" -m pytest python/tests -q -rs "$@" || failed=$?
"$venv/bin/python" - "$SAE_DOORS_TABLE" <<'PYTHON'
import json
import sys

rows = [json.loads(line) for line in open(sys.argv[1])]
print("\n| model | class | FVU ours | FVU theirs | largest difference | entries that differ | rows with a tie, left out |")
print("|---|---|---:|---:|---:|---:|---:|")
for row in sorted(rows, key=lambda row: (row["model"], row["class"])):
    print("| {model} | {class} | {fvu_ours:.6f} | {fvu_theirs:.6f} | {largest:.1e} | {differing} | {ties} |".format(**row))
PYTHON
exit "$failed"
