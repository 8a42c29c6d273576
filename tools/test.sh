#!/usr/bin/env bash
# Set up if need be, then lint and run the tests. --all adds the slow ones; the rest goes to pytest.
set -euo pipefail
cd "$(dirname "$0")/.."
bash tools/setup.sh
bin=${VENV:-.venv}/bin
select=(-m "not slow")
args=()
for arg in "$@"; do
    if [ "$arg" = --all ]; then select=(); else args+=("$arg"); fi
done
"$bin/ruff" check .
"$bin/ruff" format --check .
exec "$bin/python" -m pytest "${select[@]}" "${args[@]}"
