# Shared by the scripts in docker/: messages, and where this machine gets packages from. Sourced, never run.
# shellcheck shell=bash

say() { echo "${0##*/}: $*" >&2; }
die() {
    say "$1"
    exit "${2:-1}"
}

have() { command -v "$1" >/dev/null 2>&1; }

# One setting of pip, from the environment or its configuration files. Empty if it is not set.
pip_setting() {
    local variable="PIP_${1^^}"
    variable="${variable//-/_}"
    if [ -n "${!variable:-}" ]; then
        echo "${!variable}"
    elif have python3; then
        python3 -m pip config get "global.$1" 2>/dev/null || true
    fi
}

# The local folder that holds the locked torch wheel, if pip is configured with one. Empty otherwise.
wheelhouse() {
    local version folder
    version=$(sed -n 's/^torch==\([^ ]*\).*/\1/p' "$(dirname "${BASH_SOURCE[0]}")/requirements/trainer.lock")
    for folder in $(pip_setting find-links); do
        folder=${folder#file://}
        if compgen -G "$folder/torch-$version-*.whl" >/dev/null; then
            echo "$folder"
            return
        fi
    done
}

# Where torch for CPUs is published (it is not on PyPI).
TORCH_INDEX=https://download.pytorch.org/whl/cpu
export TORCH_INDEX

# The bundle of certificates that this machine trusts. Empty if it has none.
ca_bundle() {
    local file
    for file in "$(pip_setting cert)" "${SSL_CERT_FILE:-}" /etc/ssl/certs/ca-certificates.crt /etc/pki/tls/certs/ca-bundle.crt; do
        if [ -n "$file" ] && [ -s "$file" ]; then
            echo "$file"
            return
        fi
    done
}

# Where apt gets the packages of one origin ("Debian", "Debian-Security"): one field of apt's index, by default REPO_URI.
debian_mirror() {
    have apt-get || return 0
    apt-get indextargets --format "\$(${2:-REPO_URI})" 'Created-By: Packages' 'Component: main' "Label: $1" 2>/dev/null |
        sed -n 's,/*$,,p;q'
}

# A variable of the stack as compose sees it: from the environment, else from .env, else the default.
setting() {
    local value=${!1:-}
    if [ -z "$value" ] && [ -f .env ]; then value=$(sed -n "s/^$1=//p" .env | tail -n 1); fi
    echo "${value:-$2}"
}

# A list of CPUs such as "0,2-4", one number per line.
expand_cpus() {
    local range
    for range in ${1//,/ }; do seq "${range%-*}" "${range#*-}"; done
}
