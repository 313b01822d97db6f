#!/usr/bin/env bash
# Runs the tests: those without containers, then those with, where an engine answers. SVITLO_REQUIRE_CONTAINERS=1: fails where
# none of the latter ran.
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
    say "no engine with Compose answers: THE CONTAINER TESTS ARE SKIPPED (sudo make install brings one)"
    ran=0
fi
if [ -n "${SVITLO_REQUIRE_CONTAINERS:-}" ] && [ "$ran" -eq 0 ]; then
    die "the container tests are required (SVITLO_REQUIRE_CONTAINERS), but none ran"
fi
