#!/usr/bin/env bash
# Writes docker/requirements/*.lock from the *.in files: newest versions that agree with each other, all with SHA-256.
# Run it to upgrade dependencies (`make lock`); needs `uv` (pip install uv). A wheelhouse named by PIP_FIND_LINKS is used.
set -euo pipefail
cd "$(dirname "$0")/requirements"

command -v uv >/dev/null || { echo "lock: uv is not installed; install it with: pip install uv" >&2; exit 2; }

sources=(--extra-index-url https://download.pytorch.org/whl/cpu --index-strategy unsafe-best-match)
if [ -n "${PIP_FIND_LINKS:-}" ]; then sources=(--find-links "$PIP_FIND_LINKS"); fi

# Locks name no index and no folder, so that they hold on every machine.
compile() {
    uv pip compile --quiet --upgrade --generate-hashes --no-annotate --no-header --no-emit-index-url --no-emit-find-links \
        --python-version 3.11 --python-platform x86_64-manylinux_2_28 "${sources[@]}" "$@"
}

compile dev.in --output-file dev.lock
for name in data-prep trainer; do
    # dev.lock as a constraint: tests run with the very versions that the images hold.
    compile "$name.in" --constraint dev.lock --output-file "$name.lock"
done
compile --no-deps tokenizer.in --constraint dev.lock --output-file tokenizer.lock

for name in dev data-prep trainer tokenizer; do
    sed -i "1i # Made by docker/lock.sh from $name.in. Do not edit." "$name.lock"
    echo "lock: $name.lock holds $(grep -c '==' "$name.lock") packages"
done
