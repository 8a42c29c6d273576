#!/usr/bin/env bash
# Build the documentation into site/, in an environment of its own; a warning is an error.
#   bash tools/docs.sh [serve]
set -euo pipefail
cd "$(dirname "$0")/.."
venv=${DOCS_VENV:-.venv-docs}
[ -x "$venv/bin/python" ] || "${PYTHON:-python3}" -m venv "$venv"
"$venv/bin/python" -m pip install -qq --disable-pip-version-check -r tools/requirements-docs.txt
export NO_MKDOCS_2_WARNING=1  # the theme's note on its own future
case ${1:-build} in
    build) exec "$venv/bin/mkdocs" build --strict ;;
    serve) exec "$venv/bin/mkdocs" serve ;;
    *) echo "docs.sh: it takes nothing or serve, not $1" >&2; exit 2 ;;
esac
