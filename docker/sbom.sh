#!/usr/bin/env bash
# Writes what is installed in each image to sbom/ (CycloneDX JSON): `docker/sbom.sh`. Reads it from inside the image itself.
set -euo pipefail
cd "$(dirname "$0")/.."
. docker/lib.sh
need_engine

version=$(setting SVITLO_VERSION local)
mkdir -p sbom
for name in data-prep trainer; do
    image=svitlo/$name:$version
    docker image inspect "$image" >/dev/null 2>&1 || docker/build.sh
    file=sbom/svitlo-$name-$version.cdx.json
    docker run --rm --interactive --network none --read-only --cap-drop ALL --security-opt no-new-privileges \
        --entrypoint python "$image" - "svitlo/$name" "$version" <docker/sbom.py >"$file.tmp"
    mv "$file.tmp" "$file"
    say "$file: $(grep -c '"purl"' "$file") packages"
done
