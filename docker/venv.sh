#!/usr/bin/env bash
# Makes .venv, the environment for tests and lint, from the hash-locked requirements. Does nothing if it is up to date.
set -euo pipefail
cd "$(dirname "$0")/.."
. docker/lib.sh

# The requirements file also serves as the lock: two `make` runs must not build the same environment.
exec 9<docker/requirements/dev.lock
flock 9

find_python() {
    local candidate
    for candidate in python3.11 python3; do
        if "$candidate" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' 2>/dev/null; then
            echo "$candidate"
            return
        fi
    done
}

digest_of() { cat "$@" | sha256sum | cut -d' ' -f1; }
current() { [ "$(cat "$1" 2>/dev/null)" = "$2" ]; }
# Quiet twice: otherwise pip warns once per package about each index that does not have it.
pip_install() { .venv/bin/pip install -qq --disable-pip-version-check "$@"; }

packages=$(digest_of docker/requirements/dev.lock)
if ! current .venv/.packages "$packages"; then
    python=$(find_python)
    if [ "$(id -u)" = 0 ] && have apt-get && ! "${python:-false}" -c 'import ensurepip' 2>/dev/null; then
        say "installing Python 3.11 with venv from the distribution's packages"
        apt-get install -y --no-install-recommends python3.11-venv </dev/null >/dev/null 2>&1 || true
        python=$(find_python)
    fi
    [ -n "$python" ] || die "Python 3.11 is not installed (torch is locked for it); install python3.11 and python3.11-venv" 2
    "$python" -c 'import ensurepip' 2>/dev/null || die "Python's venv module is missing; run: apt-get install python3.11-venv" 2

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
