#!/usr/bin/env bash
# Builds the wheel, installs it into a fresh virtual environment without torch, and runs the tests of the package there: those of
# numpy, since the others need torch and say so. DYNAMIC_SAE_BINARIES=DIR takes finished programs in place of calling cargo.
# WHEEL_DIR keeps the wheel; PYTHON names the Python (default: python3).
set -euo pipefail
cd "$(dirname "$0")/.."

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
wheels="${WHEEL_DIR:-$work/wheels}"
"${PYTHON:-python3}" -m venv "$work/venv"
pip=("$work/venv/bin/python" -m pip --disable-pip-version-check --quiet)

"${pip[@]}" wheel --no-deps --wheel-dir "$wheels" ./python
wheel=$(ls -t "$wheels"/dynamic_sae-*.whl | head -n 1)
echo "$(basename "$wheel"): $(($(stat -c %s "$wheel" 2>/dev/null || stat -f %z "$wheel") >> 20)) MiB"
"${pip[@]}" install "$wheel" pytest

# Only the programs of the wheel are on the PATH, and only the installed package can be imported.
unset DYNAMIC_SAE_BINARIES PYTHONPATH
export PATH="$work/venv/bin:/usr/local/bin:/usr/bin:/bin"
for program in sae-train sae-eval sae-data; do
    [ "$(command -v $program)" = "$work/venv/bin/$program" ]
    "$program" --version
done
mkdir "$work/elsewhere"
repository=$PWD
cd "$work/elsewhere"
home=$(python -c 'import dynamic_sae; print(dynamic_sae.__file__)')
case "$home" in "$work"/venv/*) ;; *) echo "the package comes from $home, not from the wheel"; exit 1 ;; esac
python -m pytest --quiet -p no:cacheprovider -r fE "$repository/python/tests"
