#!/usr/bin/env bash
# Writes docker/requirements/*.lock from the *.in files: the newest versions that fit together, all with SHA-256. Run it to
# upgrade dependencies (`make lock`). Needs `uv` (pip install uv). Uses the wheelhouse that PIP_FIND_LINKS names, if any.
set -euo pipefail
cd "$(dirname "$0")/requirements"

command -v uv >/dev/null || { echo "lock: uv is not installed; install it with: pip install uv" >&2; exit 2; }

sources=(--extra-index-url https://download.pytorch.org/whl/cpu --index-strategy unsafe-best-match)
if [ -n "${PIP_FIND_LINKS:-}" ]; then sources=(--find-links "$PIP_FIND_LINKS"); fi

# Locks name no index and no folder, so they work on every machine.
compile() {
    uv pip compile --quiet --upgrade --generate-hashes --no-annotate --no-header --no-emit-index-url --no-emit-find-links \
        --python-version 3.11 --python-platform x86_64-manylinux_2_28 "${sources[@]}" "$@"
}

compile dev.in --output-file dev.lock
for name in data-prep trainer; do
    # dev.lock is a constraint: tests run with exactly the versions in the images.
    compile "$name.in" --constraint dev.lock --output-file "$name.lock"
done
compile --no-deps tokenizer.in --constraint dev.lock --output-file tokenizer.lock

for name in dev data-prep trainer tokenizer; do
    sed -i "1i # Made by docker/lock.sh from $name.in. Do not edit." "$name.lock"
    echo "lock: $name.lock holds $(grep -c '==' "$name.lock") packages"
done
