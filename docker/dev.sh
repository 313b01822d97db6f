#!/usr/bin/env bash
# Runs a command with what tests, lint and benchmarks need: `docker/dev.sh .venv/bin/pytest tests/unit`. Where this machine has
# Python 3.11, that is .venv. Elsewhere it is the same .venv inside a container of the image svitlo/dev.
#
# That container stands in for the machine and keeps nothing apart from it, because the tests start a second engine, lose disks,
# and look at the processes of other containers. Its user is the one who called. Its paths are those of the machine, because
# the engine looks there for what tests mount into other containers.
set -euo pipefail
cd "$(dirname "$0")/.."
. docker/lib.sh

if [ -z "$(find_python)" ] && [ "$(id -u)" = 0 ] && apt-cache show python3.11-venv >/dev/null 2>&1; then
    say "installing Python 3.11 with venv from the distribution's packages"
    apt-get install -y --no-install-recommends python3.11-venv </dev/null >/dev/null 2>&1 || true
fi
if [ -n "$(find_python)" ]; then
    docker/venv.sh
    exec "$@"
fi

reason=$(need_engine 2>&1) || die "this machine has no Python 3.11, and no engine to run an image with it: ${reason#*: }" 2
socket=$(docker context inspect --format '{{.Endpoints.docker.Host}}')
case "$socket" in
    unix://*) socket=${socket#unix://} ;;
    *) die "this machine has no Python 3.11, and the engine at $socket runs on another machine; unset DOCKER_HOST, or install Python 3.11" 2 ;;
esac
say "this machine has no Python 3.11, so this runs in the image svitlo/dev"
docker/build.sh dev

options=(--rm --privileged --pid host --network host --cgroupns host --user "$(id -u):$(id -g)" --workdir "$PWD")
for group in $(id -G); do options+=(--group-add "$group"); done
if [ -t 0 ] && [ -t 1 ]; then options+=(--interactive --tty); fi

# A worktree needs its repository, and some tests read the folder shared beside the checkout.
repository=$(git rev-parse --path-format=absolute --git-common-dir 2>/dev/null || true)
folders=("$PWD" "${TMPDIR:-/tmp}" /var/tmp /dev /sys/fs/cgroup "${repository:-$PWD}" "$PWD/../shared")
mapfile -t folders < <(realpath --strip --canonicalize-existing "${folders[@]}" 2>/dev/null | sort -u)
for folder in "${folders[@]}"; do options+=(--volume "$folder:$folder"); done
options+=(--volume "$socket:/var/run/docker.sock")

# As docker/build.sh does: the local wheelhouse, and the certificates that this machine trusts.
folder=$(wheelhouse)
if [ -n "$folder" ]; then options+=(--volume "$folder:$folder:ro" --env "PIP_FIND_LINKS=$folder"); fi
certificates=$(ca_bundle)
if [ -n "$certificates" ]; then
    options+=(--volume "$certificates:$certificates:ro" --env "PIP_CERT=$certificates" --env "SSL_CERT_FILE=$certificates")
fi

# The image does not know the caller's name and home.
user=$(id -un 2>/dev/null || id -u)
options+=(--tmpfs /run/home:mode=1777 --env HOME=/run/home --env "USER=$user" --env LANG=C.UTF-8)
for name in PYTEST_ADDOPTS TMPDIR {HTTP,HTTPS,NO}_PROXY {http,https,no}_proxy $(compgen -A export SVITLO_ || true); do
    options+=(--env "$name")
done
# shellcheck disable=SC2016
exec docker run "${options[@]}" "svitlo/dev:$(setting SVITLO_VERSION local)" bash -euc 'docker/venv.sh; exec "$@"' dev "$@"
