#!/usr/bin/env bash
# Runs the tests: first those without containers, then those with containers if an engine answers. With
# SVITLO_REQUIRE_CONTAINERS=1 it fails if none of the latter ran.
set -euo pipefail
cd "$(dirname "$0")/.."
. docker/lib.sh

say "tests without containers: units, whole commands, crashes"
.venv/bin/pytest -m 'not containers'

if docker info >/dev/null 2>&1 && docker compose version >/dev/null 2>&1; then
    say "tests with containers"
    docker/build.sh
    report=$(mktemp)
    trap 'rm -f "$report"' EXIT
    .venv/bin/pytest -m containers --junit-xml "$report"
    count() { sed -n "s/.*<testsuite [^>]*$1=\"\([0-9]*\)\".*/\1/p" "$report"; }
    ran=$(($(count tests) - $(count skipped)))
    say "$ran container tests ran"
else
    say "no engine with Compose answers: THE CONTAINER TESTS ARE SKIPPED (to install one: sudo make install)"
    ran=0
fi
if [ -n "${SVITLO_REQUIRE_CONTAINERS:-}" ] && [ "$ran" -eq 0 ]; then
    die "the container tests are required (SVITLO_REQUIRE_CONTAINERS), but none ran"
fi
