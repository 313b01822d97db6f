#!/usr/bin/env bash
# Prints the name of the base image to build from. That is the pinned image if it is present or can be pulled. Otherwise
# makes one of the same Debian from Debian's packages (as root), once.
set -euo pipefail
cd "$(dirname "$0")/.."
. docker/lib.sh
export DEBIAN_FRONTEND=noninteractive

LOCAL_IMAGE=svitlo/base:bookworm
PACKAGES_THAT_MAKE_IT=(debootstrap debian-archive-keyring)

image_exists() { docker image inspect "$1" >/dev/null 2>&1; }

pinned=${BASE_IMAGE:-$(sed -n 's/^ARG BASE_IMAGE=//p' docker/Dockerfile)}
if image_exists "$pinned"; then
    echo "$pinned"
    exit
fi
if image_exists "$LOCAL_IMAGE"; then
    say "using the base image made on this machine, $LOCAL_IMAGE (remove it to try the registry again)"
    echo "$LOCAL_IMAGE"
    exit
fi
say "pulling $pinned"
if reason=$(docker pull --quiet "$pinned" 2>&1); then
    echo "$pinned"
    exit
fi
say "it cannot be pulled (${reason##*: }): making $LOCAL_IMAGE from Debian's packages instead"

[ "$(id -u)" = 0 ] || die "only root can make a base image; run: sudo docker/base-image.sh" 2
if ! have debootstrap; then
    have apt-get || die "debootstrap is not installed, and neither is apt-get to install it" 2
    say "installing ${PACKAGES_THAT_MAKE_IT[*]}"
    apt-get update -qq </dev/null >&2
    apt-get install -y -qq --no-install-recommends "${PACKAGES_THAT_MAKE_IT[@]}" </dev/null >/dev/null
fi

root=$(mktemp -d)
trap 'rm -rf "$root"' EXIT
mirror=${DEBIAN_MIRROR:-$(debian_mirror Debian)}
[ -n "$mirror" ] || die "apt knows no Debian mirror here; set one: DEBIAN_MIRROR=http://.../debian docker/base-image.sh" 2
security=$(debian_mirror Debian-Security)
security=${security:-${mirror%/}-security}
say "debootstrap from $mirror (about half a minute)"
debootstrap --variant=minbase bookworm "$root" "$mirror" </dev/null >"$root.log" 2>&1 ||
    { tail -n 20 "$root.log" >&2 && die "debootstrap failed (see above)"; }
rm -f "$root.log"

# As in the published slim image: security updates on, no documentation.
cat >"$root/etc/apt/sources.list" <<SOURCES
deb $mirror bookworm main
deb $mirror bookworm-updates main
deb $security bookworm-security main
SOURCES
cat >"$root/etc/dpkg/dpkg.cfg.d/slim" <<SLIM
path-exclude /usr/share/doc/*
path-exclude /usr/share/info/*
path-exclude /usr/share/locale/*
path-exclude /usr/share/man/*
SLIM
rm -rf "$root"/usr/share/{doc,info,locale,man}/* "$root"/var/{cache/apt,lib/apt/lists,log}/*
tar -C "$root" -c . | docker import --change 'CMD ["bash"]' - "$LOCAL_IMAGE" >/dev/null
say "made $LOCAL_IMAGE"
echo "$LOCAL_IMAGE"
