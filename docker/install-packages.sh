#!/bin/sh
# Runs inside the build: installs /build/packages.lock into /opt/svitlo. Takes torch from the wheelhouse if there is one.
set -eu

# Behind a proxy that re-signs TLS, pip trusts the host's certificates. Elsewhere the secret is absent.
if [ -s /run/secrets/ca ]; then export PIP_CERT=/run/secrets/ca; fi

set -- --require-hashes --no-compile --disable-pip-version-check --progress-bar off -r /build/packages.lock
if grep -q '^torch==' /build/packages.lock; then
    if ls /wheelhouse/torch-*.whl >/dev/null 2>&1; then
        set -- --find-links /wheelhouse "$@"
    else
        set -- --extra-index-url https://download.pytorch.org/whl/cpu "$@"
    fi
fi
/opt/svitlo/bin/pip install --quiet "$@"
