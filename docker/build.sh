#!/usr/bin/env bash
# Builds the images svitlo/data-prep and svitlo/trainer, or those that are named: `docker/build.sh dev`. Uses what this machine needs for that: a base image made here, a
# local wheelhouse, its own certificates. Fast if nothing has changed.
set -euo pipefail
cd "$(dirname "$0")/.."
. docker/lib.sh

need_engine

version=$(setting SVITLO_VERSION local)
base=$(docker/base-image.sh)
options=(--build-arg "BASE_IMAGE=$base" --build-arg "SVITLO_VERSION=$version")

folder=$(wheelhouse)
if [ -n "$folder" ]; then
    say "torch comes from the local wheelhouse $folder"
    options+=(--build-context "wheelhouse=$folder")
fi
certificates=$(ca_bundle)
if [ -n "$certificates" ]; then
    say "packages are downloaded with this machine's certificates, $certificates"
    options+=(--secret "id=ca,src=$certificates")
fi

[ $# -gt 0 ] || set -- data-prep trainer
for image in "$@"; do
    say "building svitlo/$image:$version"
    # No attestations: an unchanged build then gives the same image, and containers are not recreated needlessly.
    docker buildx build --quiet --load --provenance=false --file docker/Dockerfile \
        --target "$image" --tag "svitlo/$image:$version" "${options[@]}" . >/dev/null
done

# Removes what the build has replaced. Images that are in use or have a tag stay.
docker image prune --force --filter label=org.opencontainers.image.vendor=Svitlo >/dev/null
