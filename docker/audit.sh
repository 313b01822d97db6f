#!/usr/bin/env bash
# Checks the locked packages for known vulnerabilities at osv.dev: `docker/audit.sh`. Fails (1) if one is known. If osv.dev
# cannot be reached, it says that nothing was checked and does not fail.
set -uo pipefail
cd "$(dirname "$0")/.." || exit
. docker/lib.sh
PATH=$PWD/.venv/bin:$PATH

report=$(mktemp)
trap 'rm -f "$report" "$report.log"' EXIT
passed=true
for name in data-prep trainer; do
    : >"$report"
    # Nothing is installed or resolved: the locks name every package with its version.
    if pip-audit --requirement "docker/requirements/$name.lock" --require-hashes --disable-pip --vulnerability-service osv \
        --timeout 10 --progress-spinner off --output "$report" 2>"$report.log"; then
        say "$name.lock: no known vulnerabilities"
    elif [ -s "$report" ]; then
        cat "$report" >&2
        say "$name.lock: known vulnerabilities (above). Take newer versions with: make lock"
        passed=false
    else
        say "NOT CHECKED for known vulnerabilities, because osv.dev gave no answer: $(tail -n 1 "$report.log" | cut -c 1-160)"
        break
    fi
done
$passed
