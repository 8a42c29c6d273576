#!/usr/bin/env bash
# Set up if need be, then lint and run the tests. --all adds the slow ones and builds the docs;
# --upstream runs those of MMDetection with OpenMMLab's own releases, in an environment of its own;
# --reliability runs the long checks of tests/reliability and nothing else; the rest goes to pytest.
set -euo pipefail
cd "$(dirname "$0")/.."
select=(-m "not slow")
args=()
reliability=
for arg in "$@"; do
    case $arg in
        --all) select=() ;;
        --upstream)
            export VENV=${VENV:-.venv-upstream} MMDET=upstream
            args+=(tests/mmdet tests/weights/test_detector.py)
            ;;
        --reliability) reliability=1 ;;
        *) args+=("$arg") ;;
    esac
done
bash tools/setup.sh
bin=${VENV:-.venv}/bin
if [ "$reliability" ]; then
    export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
    exec "$bin/python" -m tests.reliability "${args[@]}"
fi
"$bin/ruff" check .
"$bin/ruff" format --check .
"$bin/python" -m mypy  # half a minute, then seconds with .mypy_cache
# A file a process, on up to four cores, with one thread each: small tensors gain nothing by more.
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
"$bin/python" -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile \
    --no-loadscope-reorder \
    "${select[@]}" "${args[@]}"
if [ ${#select[@]} = 0 ]; then bash tools/docs.sh; fi
