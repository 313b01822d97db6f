# Shared by the scripts in docker/: messages, and where this machine gets packages from. Sourced, never run.
# shellcheck shell=bash

say() { echo "${0##*/}: $*" >&2; }
die() {
    say "$1"
    exit "${2:-1}"
}

have() { command -v "$1" >/dev/null 2>&1; }

engine_answers() { timeout 20 docker info >/dev/null 2>&1; }

# Ends with one message where no engine answers. Only install.sh, up.sh and demo.sh set one up.
need_engine() {
    local reason
    have docker || die "the command docker is not on the PATH ($PATH). If it is installed, add its folder; if not, run: sudo make install" 2
    engine_answers && return
    reason=$(timeout 20 docker version 2>&1 >/dev/null | tail -n 1) || true
    die "the Docker engine does not answer (${reason:-no reply in 20 s}). Look at: systemctl status docker, journalctl -u docker, make doctor. After a 'permission denied', put your user into the group docker" 2
}

# The name of the engine behind the command docker: Podman answers to it, too.
engine_name() {
    case "$(docker --version 2>/dev/null) $(docker version --format '{{range .Server.Components}}{{.Name}} {{end}}' 2>/dev/null)" in
        *[Pp]odman*) echo Podman ;;
        *) echo Docker ;;
    esac
}

# What another engine than Docker does not keep, with the remedy; empty for Docker.
engine_problem() {
    [ "$(engine_name)" = Docker ] ||
        echo "this is $(engine_name), not Docker: after a power cut it does not bring the stack back by itself; install Docker Engine in its place, or run after each boot: docker compose up -d"
}

# What a shell has set for another project must not lead these scripts to its stack. A second stack of this project has a name
# in SVITLO_PROJECT. What .env says is left to Compose.
unset COMPOSE_FILE COMPOSE_PATH_SEPARATOR COMPOSE_PROJECT_NAME COMPOSE_PROFILES COMPOSE_ENV_FILES COMPOSE_DISABLE_ENV_FILE
if [ -n "${SVITLO_PROJECT:-}" ]; then export COMPOSE_PROJECT_NAME=$SVITLO_PROJECT; fi

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

# A Python 3.11 that can make .venv, the one inside .venv if there is no other. Empty if there is none.
find_python() {
    local candidate
    for candidate in python3.11 python3 .venv/bin/python; do
        if "$candidate" -c 'import ensurepip, sys; sys.exit(sys.version_info[:2] != (3, 11))' 2>/dev/null; then
            echo "$candidate"
            return
        fi
    done
}

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

# A variable of the stack as Compose sees it, from the environment or .env; else the default. compose.yaml lists them.
setting() {
    local value
    if value=$(docker compose config --format json 2>/dev/null); then
        [[ "$value" == *'"x-settings"'* ]] || die "this Docker Compose is too old, 2.20 or newer is needed; run: sudo make install" 2
        value=$(sed -n "/^ *\"x-settings\": {/,/^ *}/s/^ *\"$1\": \"\(.*\)\",*\$/\1/p" <<<"$value")
        # JSON's escapes, but for that of quotes, are also those of printf. Compose writes each $ twice.
        value=${value//\\\"/\\x22}
        printf -v value %b "$value"
        value=${value//\$\$/\$}
    elif docker compose version >/dev/null 2>&1; then
        die "$(docker compose config --quiet 2>&1 | grep -v level=warning | tail -n 1)" 2
    else
        value=$(plain_setting "$1") || return
    fi
    echo "${value:-$2}"
}

# The same before Compose is installed. Only a value that no reader can take for another.
plain_setting() {
    local value=${!1:-}
    if [ -z "$value" ] && [ -f .env ]; then
        value=$(sed -nE "s/\r\$//; s/^[[:space:]]*(export[[:space:]]+)?$1[[:space:]]*[=:]//p" .env | tail -n 1)
        case "$value" in *[!A-Za-z0-9_./,~+@-]*) die "only Docker Compose can read $1 in .env, and it does not work here; run: sudo make install" 2 ;; esac
    fi
    echo "$value"
}

# A folder or file of the stack. Like Compose, takes a leading ~ for the home folder.
path_setting() {
    local value
    value=$(setting "$1" "$2") || return
    echo "${value/#\~/${HOME:-}}"
}

# What the containers mount and their user cannot read, with the remedy; empty if there is nothing. Judged by the modes: the
# folders above do not matter inside a container.
mounts_problem() {
    local uid gid config token files
    uid=$(setting PUID 1000) && gid=$(setting PGID 1000) || return
    config=$(path_setting SVITLO_CONFIG ./config) && token=$(path_setting HUB_TOKEN_FILE /dev/null) || return
    files=$(find -L "$config" "$config"/*.yaml "$token" -maxdepth 0 \
        \( -uid "$uid" \( ! -perm -u=r -o -type d ! -perm -u=x \) \
        -o ! -uid "$uid" -gid "$gid" \( ! -perm -g=r -o -type d ! -perm -g=x \) \
        -o ! -uid "$uid" ! -gid "$gid" \( ! -perm -o=r -o -type d ! -perm -o=x \) \) 2>/dev/null || true)
    [ -z "$files" ] || echo "the containers run as $uid:$gid (PUID, PGID), which cannot read ${files//$'\n'/, }; run: chmod -R a+rX '$config' (a token: chown $uid)"
}

need_readable_mounts() {
    local problem
    problem=$(mounts_problem) || exit
    [ -z "$problem" ] || die "$problem" 2
}

# Whether the network that a container was made in is gone: then the engine can never start it again.
network_is_gone() {
    local network
    for network in $(docker inspect --format '{{range $name, $it := .NetworkSettings.Networks}}{{if ne $name "none"}}{{$it.NetworkID}} {{end}}{{end}}' "$1"); do
        docker network inspect "$network" >/dev/null 2>&1 || return 0
    done
    return 1
}

# What does not fit where the trainer computes with another number of threads than it has CPUs; empty if it fits. The number
# belongs to a run, so this is worth a word before one begins. It stands only in the file of phase 1.
threads_problem() {
    local config threads cpus effect
    config=$(path_setting SVITLO_CONFIG ./config)/phase1_pretraining.yaml || return
    threads=$(sed -nE 's/^[^#]*\<threads: *([0-9]+).*/\1/p' "$config" 2>/dev/null | head -n 1)
    threads=${threads:-6}
    cpus=$(expand_cpus "$(setting TRAINER_CPUS 0-5)" | wc -l) || return
    if [ "$threads" -gt "$cpus" ]; then
        effect="threads wait for each other, which makes steps slower (1.2 times with two threads a CPU)"
    elif [ "$threads" -lt "$cpus" ]; then
        effect="$((cpus - threads)) of these CPUs stay idle"
    else
        return 0
    fi
    echo "numerics.threads is $threads in $config, and the trainer may use $cpus CPUs: $effect. Set it to $cpus there"
}

# Whether a run has begun in the volumes.
has_begun() {
    [ -e "$(path_setting SVITLO_VOLUMES ./volumes)/checkpoints/run.json" ]
}

# A list of CPUs such as "0,2-4", one number per line.
expand_cpus() {
    local range
    for range in ${1//,/ }; do seq "${range%-*}" "${range#*-}"; done
}
