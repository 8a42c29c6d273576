#!/usr/bin/env bash
# Make .venv with the pinned, tested set: torch, Detectron2, this project. Quick when nothing changed.
#
#   PYTHON=python3.12 bash tools/setup.sh     another interpreter (CPython 3.10 to 3.12)
#   DETECTRON2=package bash tools/setup.sh    do not try Detectron2's Git repository
#   VENV=folder bash tools/setup.sh           another place than .venv
set -euo pipefail
cd "$(dirname "$0")/.."
venv=${VENV:-.venv}
python="$venv/bin/python"
detectron2_git=https://github.com/facebookresearch/detectron2.git
detectron2_package=sal-detectron2==0.7.2  # the same code, published for CPython 3.10

fail() { printf 'setup.sh: %s\n' "$*" >&2; exit 1; }

stamp="$venv/.gram_backbones_setup"
state=$(cat tools/setup.sh tools/requirements.txt pyproject.toml | cksum)
if [ -x "$python" ] && [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$state $PWD" ]; then
    exit 0
fi

supported='import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 12))'
if ! { [ -x "$python" ] && "$python" -c "$supported" && "$python" -m pip --version >/dev/null 2>&1; }; then
    base=
    for candidate in ${PYTHON:-python3.11 python3.12 python3.10 python3}; do
        if command -v "$candidate" >/dev/null && "$candidate" -c "$supported" 2>/dev/null; then
            base=$candidate
            break
        fi
    done
    [ -n "$base" ] || fail "no CPython 3.10 to 3.12 among: ${PYTHON:-python3.11 python3.12 python3.10 python3}.
Install one, or name it: PYTHON=/path/to/python3.11 bash tools/setup.sh"
    "$base" -m venv --clear "$venv" || fail "$base could not make a virtual environment.
On Debian and Ubuntu it takes the package python3-venv (or python3.11-venv for that version)."
fi

echo "Installing torch, torchvision and the pinned set into $venv; a few GB, minutes on a fast line."
echo "(PyTorch's CPU packages are much smaller: name their index in PIP_EXTRA_INDEX_URL to take them.)"
"$python" -m pip install -qq --disable-pip-version-check -r tools/requirements.txt ||
    fail "pip could not install tools/requirements.txt; its message is above.
Check the connection to the package index (PIP_INDEX_URL, PIP_FIND_LINKS) and the free disk space (8 GB)."

site=$("$python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
install_from_git() {
    [ "${DETECTRON2:-git}" = git ] && command -v git >/dev/null || return 1
    GIT_TERMINAL_PROMPT=0 timeout 20 git ls-remote --exit-code "$detectron2_git" HEAD >/dev/null 2>&1 || return 1
    echo "Building Detectron2 from its Git repository; this compiles for some minutes."
    "$python" -m pip install -qq --no-build-isolation --no-deps "git+$detectron2_git"
}
install_package() {
    # Published for CPython 3.10, and its Python part runs on any version. The compiled part fits
    # one build of torch only; without it Detectron2 lacks just deformable convolution and rotated
    # boxes. The package also holds a top-level package named "tools", which must not stay.
    local unpacked
    unpacked=$(mktemp -d)
    "$python" -m pip install -qq --disable-pip-version-check --no-deps --only-binary=:all: \
        --python-version 3.10 --target "$unpacked" "$detectron2_package" || return 1
    rm -rf "$site/detectron2" "$site"/sal_detectron2-*.dist-info
    rm -f "$unpacked"/detectron2/_C*.so
    mv "$unpacked/detectron2" "$unpacked"/sal_detectron2-*.dist-info "$site/"
    rm -rf "$unpacked"
}
if ! "$python" -c 'import detectron2' 2>/dev/null; then
    install_from_git || install_package ||
        fail "Detectron2 could be installed neither from its Git repository nor as $detectron2_package.
Install it into $venv as its documentation says, then run this again."
fi

"$python" -m pip install -qq --disable-pip-version-check --no-deps --editable . ||
    fail "this project could not be installed; pip's message is above"
"$python" -c 'import gram_backbones.d2' ||
    fail "gram_backbones.d2 does not import; the message is above. Remove $venv and run this again."
echo "$state $PWD" > "$stamp"
