#!/usr/bin/env bash
# Runs one svitlo command on the volumes, in the trainer's image: `docker/tools.sh status`. To pass options to
# `docker compose run`, put them before `--` and the command after it.
set -euo pipefail
cd "$(dirname "$0")/.."
. docker/lib.sh
need_engine

options=()
if [[ " $* " == *" -- "* ]]; then
    while [ "$1" != -- ]; do
        options+=("$1")
        shift
    done
    shift
fi
if [ ! -t 0 ] || [ ! -t 1 ]; then options+=(-T); fi

version=$(setting SVITLO_VERSION local)
image=svitlo/trainer:$version
docker image inspect "$image" >/dev/null 2>&1 || docker/build.sh
exec docker compose --progress quiet run --rm --no-deps "${options[@]}" tools "$@"
