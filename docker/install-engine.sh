#!/usr/bin/env bash
# Installs Docker Engine with Compose v2 and buildx from the distribution's own packages (Debian, Ubuntu; as root), starts
# it, and enables it at boot. Does nothing if an engine with Compose v2 already answers, so it is safe to run at any time.
# `--packages` starts nothing: for an image.
set -euo pipefail
cd "$(dirname "$0")/.."
. docker/lib.sh
export DEBIAN_FRONTEND=noninteractive

ENGINE_LOG=/var/log/dockerd.log
START_TIMEOUT_SECONDS=60

# Also in folders that a short PATH, such as cron's, leaves out, or on another machine.
engine_is_elsewhere() {
    [ -n "${DOCKER_HOST:-}" ] && return
    ! have dockerd && PATH=$PATH:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:/snap/bin:/opt/bin have dockerd
}
compose_works() { docker compose version >/dev/null 2>&1 && docker buildx version >/dev/null 2>&1; }
systemd_runs() { [ -d /run/systemd/system ]; }

apt_quiet() {
    local log
    log=$(mktemp)
    if ! apt-get "$@" </dev/null >"$log" 2>&1; then
        cat "$log" >&2
        rm -f "$log"
        die "apt-get $1 failed (see above)"
    fi
    rm -f "$log"
}
install_packages() { apt_quiet install -y --no-install-recommends "$@"; }

# Debian 12's own engine and Compose are too old, but Debian 13's run on it. Priority 100 keeps everything else at Debian 12.
add_trixie() {
    [ -e /etc/apt/sources.list.d/svitlo-trixie.sources ] && return
    local uri entry keyring=''
    uri=$(debian_mirror Debian)
    entry=$(debian_mirror Debian SOURCESENTRY)
    [ -n "$uri" ] || die "no source of Debian 12 packages found in apt's configuration"
    case "$entry" in *.sources:*) keyring=$(sed -n 's/^Signed-By: *//p;T;q' "${entry%:*}") ;; esac
    say "adding Debian 13 as a second package source, pinned below Debian 12, for a newer engine"
    cat >/etc/apt/preferences.d/svitlo-trixie <<PIN
Package: *
Pin: release n=trixie
Pin-Priority: 100
PIN
    cat >/etc/apt/sources.list.d/svitlo-trixie.sources <<SOURCE
Types: deb
URIs: $uri
Suites: trixie
Components: main
Signed-By: ${keyring:-/usr/share/keyrings/debian-archive-keyring.gpg}
SOURCE
    apt_quiet update
}

install_engine() {
    say "updating the package lists"
    apt_quiet update
    # dpkg also lists packages that are not installed: removed ones, and those that docker.io conflicts with.
    if [ "$(dpkg-query --show --showformat='${db:Status-Status}' docker-ce 2>/dev/null)" = installed ]; then
        say "installing what docker-ce still needs"
        install_packages docker-ce containerd.io docker-compose-plugin docker-buildx-plugin
        return
    fi
    case "$ID $VERSION_ID" in
        "debian 12")
            # These come first, from Debian 12 itself. Debian 13's would pull in a new C library.
            say "installing containerd, runc, tini, iptables"
            install_packages containerd runc tini iptables
            add_trixie
            say "installing docker.io, docker-cli, docker-compose, docker-buildx from Debian 13"
            install_packages -t trixie docker.io docker-cli docker-compose docker-buildx
            ;;
        debian*)
            say "installing docker.io, docker-cli, docker-compose, docker-buildx"
            install_packages docker.io docker-cli docker-compose docker-buildx
            ;;
        *)
            say "installing docker.io, docker-compose-v2, docker-buildx"
            install_packages docker.io docker-compose-v2 docker-buildx
            ;;
    esac
}

start_engine() {
    if systemd_runs; then
        say "starting the engine, now and at every boot"
        systemctl enable --now docker >/dev/null 2>&1 || die "systemd could not start docker; see: journalctl -u docker"
    else
        say "no systemd here: starting dockerd in its own session (log: $ENGINE_LOG)"
        setsid --fork dockerd </dev/null >>"$ENGINE_LOG" 2>&1
    fi
    local deadline=$((SECONDS + START_TIMEOUT_SECONDS))
    until engine_answers; do
        [ "$SECONDS" -lt "$deadline" ] || die "the engine did not answer within $START_TIMEOUT_SECONDS s; see $ENGINE_LOG or journalctl -u docker"
        sleep 1
    done
}

if engine_answers && compose_works; then
    say "an engine with Compose answers; nothing to install"
    exit 0
fi

# Never a second engine beside one that is only not answering.
if ! engine_answers && { engine_is_elsewhere || { have dockerd && [ "$(id -u)" != 0 ]; }; }; then need_engine; fi

# shellcheck disable=SC1091
. /etc/os-release 2>/dev/null || true
case "${ID:-unknown} ${VERSION_ID:-}" in
    "debian "* | "ubuntu "*) ;;
    *) die "no working Docker Engine with Compose v2, and this system (${PRETTY_NAME:-unknown}) is not Debian or Ubuntu; install Docker as https://docs.docker.com/engine/install/ says, then try again" 2 ;;
esac
[ "$(id -u)" = 0 ] || die "no Docker Engine with Compose v2 answers, and only root may install one; run: sudo docker/install-engine.sh (if it is installed: is your user in the group docker?)" 2

# A client alone is not enough. A stopped engine is no reason to install again: it only needs to start.
if ! have dockerd || ! have containerd || ! compose_works; then
    install_engine
fi
hash -r
[ "${1:-}" != --packages ] || exit 0
engine_answers || start_engine
compose_works || die "the engine runs, but 'docker compose' does not: an older docker command ($(command -v docker)) may hide the installed one"
say "Docker Engine $(docker version --format '{{.Server.Version}}') with Compose $(docker compose version --short) answers"
