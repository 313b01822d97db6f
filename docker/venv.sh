#!/usr/bin/env bash
# Makes .venv, the environment for tests and lint, from the hash-locked requirements. Does nothing if it is up to date. Needs
# Python 3.11: docker/dev.sh finds one, or an image that has it.
set -euo pipefail
cd "$(dirname "$0")/.."
. docker/lib.sh

# The requirements file also serves as the lock: two `make` runs must not build the same environment.
exec 9<docker/requirements/dev.lock
flock 9

digest_of() { cat "$@" | sha256sum | cut -d' ' -f1; }
current() { [ "$(cat "$1" 2>/dev/null)" = "$2" ]; }
# Quiet twice: otherwise pip warns once per package about each index that does not have it.
pip_install() { .venv/bin/pip install -qq --disable-pip-version-check "$@"; }

packages=$(digest_of docker/requirements/dev.lock)
# The Python that .venv was made with may be gone: after an upgrade of the system, or outside the image that made it.
runs() { .venv/bin/python -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' 2>/dev/null; }
if ! runs || ! current .venv/.packages "$packages"; then
    python=$(find_python)
    [ -n "$python" ] || die "Python 3.11 with its module venv is not installed (torch is locked for it)" 2

    folder=$(wheelhouse)
    torch_source=(--extra-index-url "$TORCH_INDEX")
    if [ -n "$folder" ]; then torch_source=(--find-links "$folder"); fi
    say "making .venv from docker/requirements/dev.lock (torch from ${folder:-$TORCH_INDEX})"
    "$python" -m venv --clear .venv
    pip_install --require-hashes "${torch_source[@]}" -r docker/requirements/dev.lock
    echo "$packages" >.venv/.packages
fi

project=$(digest_of pyproject.toml)
if ! current .venv/.project "$project"; then
    say "installing the svitlo command into .venv"
    pip_install --no-deps --no-build-isolation -e .
    echo "$project" >.venv/.project
fi

tokenizer=$(digest_of docker/requirements/tokenizer.lock docker/tokenizer.py)
if ! current .venv/.tokenizer "$tokenizer"; then
    say "making the tokenizer"
    .venv/bin/python docker/tokenizer.py .venv/share/svitlo
    echo "$tokenizer" >.venv/.tokenizer
fi
