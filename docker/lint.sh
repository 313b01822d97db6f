#!/usr/bin/env bash
# Checks style, types, shell scripts, Dockerfile and compose.yaml. Runs every check. The exit code says whether all passed.
set -uo pipefail
cd "$(dirname "$0")/.." || exit
. docker/lib.sh
PATH=$PWD/.venv/bin:$PATH
passed=true

check() {
    if ! "$@"; then
        say "failed: $*"
        passed=false
    fi
}

# The layers are listed in pyproject.toml.
imports_run_downwards() {
    local report
    report=$(lint-imports 2>&1) || { echo "$report" && return 1; }
}

mapfile -t scripts < <(grep -lE '^#!.*(bash|/sh)$' -r docker .ci && echo docker/lib.sh)
check ruff check --quiet .
check ruff format --check --quiet .
check mypy --no-error-summary
check imports_run_downwards
check shellcheck --external-sources "${scripts[@]}"
check hadolint docker/Dockerfile
check docker/audit.sh
if docker compose version >/dev/null 2>&1; then check docker compose --profile tools config --quiet; fi
$passed || exit 1
say "ruff, mypy, imports, shellcheck, hadolint and compose.yaml: all passed"
