#!/usr/bin/env bash
# Starts the stack: settings for this machine, images, containers.
set -euo pipefail
cd "$(dirname "$0")/.."
. docker/lib.sh

engine_answers || docker/install-engine.sh
problem=$(engine_problem)
[ -z "$problem" ] || say "$problem"
docker/env.sh
problem=$(threads_problem)
if [ -n "$problem" ] && ! has_begun; then say "$problem before the run begins"; fi
need_readable_mounts
docker/build.sh
for service in data-prep trainer; do
    container=$(docker compose ps --all --quiet "$service")
    if [ -n "$container" ] && network_is_gone "$container"; then
        say "making $service anew: the engine has lost its network"
        docker compose --progress quiet rm --stop --force "$service"
    fi
done
docker compose --progress quiet up --detach --no-build
say "running; to watch it: make logs, make status"
