#!/usr/bin/env bash
# Starts the stack: settings for this machine, images, containers.
set -euo pipefail
cd "$(dirname "$0")/.."
. docker/lib.sh

docker/env.sh
docker/build.sh
docker compose --progress quiet up --detach --no-build
say "running; to watch it: make logs, make status"
