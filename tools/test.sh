#!/usr/bin/env bash
# Set up if need be, then lint and run the tests. --all adds the slow ones; --upstream runs those of
# MMDetection with OpenMMLab's own releases, in an environment of its own; the rest goes to pytest.
set -euo pipefail
cd "$(dirname "$0")/.."
select=(-m "not slow")
args=()
for arg in "$@"; do
    case $arg in
        --all) select=() ;;
        --upstream)
            export VENV=${VENV:-.venv-upstream} MMDET=upstream
            args+=(tests/test_mmdet*.py)
            ;;
        *) args+=("$arg") ;;
    esac
done
bash tools/setup.sh
bin=${VENV:-.venv}/bin
"$bin/ruff" check .
"$bin/ruff" format --check .
exec "$bin/python" -m pytest "${select[@]}" "${args[@]}"
