#!/usr/bin/env bash
# Make .venv with the pinned, tested set: torch, Detectron2, MMDetection, this project. Quick when
# nothing changed.
#
#   PYTHON=python3.12 bash tools/setup.sh     another interpreter (CPython 3.10 to 3.13)
#   TORCH=2.6.0 bash tools/setup.sh           another torch than the pinned one, and its torchvision
#   DETECTRON2=package bash tools/setup.sh    do not try Detectron2's Git repository
#   DETECTRON2=none bash tools/setup.sh       without Detectron2
#   MMDET=none bash tools/setup.sh            without MMDetection (its mmcv compiles for 16 minutes)
#   MMDET=upstream bash tools/setup.sh        OpenMMLab's own last release instead of the maintained
#                                             one; give it a folder of its own by VENV
#   VENV=folder bash tools/setup.sh           another place than .venv
set -euo pipefail
cd "$(dirname "$0")/.."
venv=${VENV:-.venv}
python="$venv/bin/python"
detectron2_git=https://github.com/facebookresearch/detectron2.git
detectron2_package=sal-detectron2==0.7.2  # the same code, published for CPython 3.10
detectron2=${DETECTRON2:-git}
mmdet=${MMDET:-maintained}

fail() { printf 'setup.sh: %s\n' "$*" >&2; exit 1; }

case $detectron2 in
    git|package|none) ;;
    *) fail "DETECTRON2 is $detectron2; allowed are git, package, none" ;;
esac
case $mmdet in
    maintained)
        mm_packages=(onedl-mmengine==0.10.12 onedl-mmcv==2.3.6 onedl-mmdetection==3.5.1 imaug==0.4.3)
        other_packages=(mmengine mmcv mmdet)
        ;;
    upstream)
        mm_packages=(mmengine==0.10.7 mmcv==2.1.0 mmdet==3.3.0)
        other_packages=(onedl-mmengine onedl-mmcv onedl-mmdetection imaug)
        ;;
    none) ;;
    *) fail "MMDET is $mmdet; allowed are maintained, upstream, none" ;;
esac

stamp="$venv/.gram_backbones_setup"
mm_stamp="$venv/.gram_backbones_setup_mmdet"
state="$([ "$detectron2" = none ] && echo "no Detectron2 ")$(cat tools/setup.sh tools/requirements.txt pyproject.toml | cksum) $PWD${TORCH:+ torch $TORCH}"
mm_state="$mmdet $(cat tools/requirements-mmdet.txt | cksum) $state"
is_done() { [ -x "$python" ] && [ -f "$1" ] && [ "$(cat "$1")" = "$2" ]; }

# What is compiled fits one Python and one torch.
check_environment() {
    local query wanted found
    query='import sys; print("Python %d.%d" % sys.version_info[:2])'
    found=$("$python" -c "$query" 2>/dev/null) || return 0  # none, or a broken one, which is made anew
    wanted=$("${PYTHON:-$python}" -c "$query") || fail "PYTHON is $PYTHON, which does not run"
    [ "$wanted" = "$found" ] || fail "$venv has $found, not $wanted. Remove it, or name another: VENV=folder"
    query='import importlib.metadata as m; print(m.version("torch").split("+")[0])'
    found=$("$python" -c "$query" 2>/dev/null) || return 0
    wanted=${TORCH:-$(sed -n 's/^torch==//p' tools/requirements.txt)}
    wanted=${wanted%%+*}
    case $found in
        "$wanted" | "$wanted.0") ;;  # pip takes 2.6 for 2.6.0
        *) fail "$venv has torch $found, not $wanted. Remove it, or name another: VENV=folder" ;;
    esac
}

make_environment() {
    local supported base= candidate pythons=${PYTHON:-python3.11 python3.12 python3.13 python3.10 python3}
    supported='import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))'
    if [ -x "$python" ] && "$python" -c "$supported" && "$python" -m pip --version >/dev/null 2>&1; then
        return
    fi
    for candidate in $pythons; do
        if command -v "$candidate" >/dev/null && "$candidate" -c "$supported" 2>/dev/null; then
            base=$candidate
            break
        fi
    done
    [ -n "$base" ] || fail "no CPython 3.10 to 3.13 among: $pythons.
Install one, or name it: PYTHON=/path/to/python3.11 bash tools/setup.sh"
    "$base" -m venv --clear "$venv" || fail "$base could not make a virtual environment.
On Debian and Ubuntu it takes the package python3-venv (or python3.11-venv for that version)."
}

# pip says nothing while it downloads or compiles.
pip_install() {
    local beat status=0
    while sleep 12 >/dev/null 2>&1; do echo "… still installing, $SECONDS s"; done &
    beat=$!
    "$python" -m pip install -qq --disable-pip-version-check "$@" || status=$?
    kill $beat
    wait $beat 2>/dev/null || true
    return $status
}

install_core() {
    local requirements=tools/requirements.txt
    echo "Installing torch, torchvision and the pinned set into $venv; a few GB, minutes on a fast line."
    echo "(PyTorch's CPU packages are much smaller: name their index in PIP_EXTRA_INDEX_URL to take them.)"
    if [ -n "${TORCH:-}" ]; then
        requirements=$(mktemp)
        sed "s/^torch==.*/torch==$TORCH/; s/^torchvision==.*/torchvision/" tools/requirements.txt > "$requirements"
    fi
    pip_install -r "$requirements" ||
        fail "pip could not install tools/requirements.txt; its message is above.
Check the connection to the package index (PIP_INDEX_URL, PIP_FIND_LINKS) and the free disk space (8 GB)."
    if [ "$detectron2" != none ] && ! "$python" -c 'import detectron2' 2>/dev/null; then
        detectron2_from_git || detectron2_from_package ||
            fail "Detectron2 could be installed neither from its Git repository nor as $detectron2_package.
Install it into $venv as its documentation says, then run this again."
    fi
    pip_install --no-deps --editable . ||
        fail "this project could not be installed; pip's message is above"
    [ "$detectron2" = none ] || "$python" -W ignore -c 'import gram_backbones.d2' ||
        fail "gram_backbones.d2 does not import; the message is above. Remove $venv and run this again."
}

detectron2_from_git() {
    [ "$detectron2" = git ] && command -v git >/dev/null || return 1
    GIT_TERMINAL_PROMPT=0 timeout 20 git ls-remote --exit-code "$detectron2_git" HEAD >/dev/null 2>&1 || return 1
    echo "Building Detectron2 from its Git repository; this compiles for some minutes."
    pip_install --no-build-isolation --no-deps "git+$detectron2_git"
}

detectron2_from_package() {
    # Published for CPython 3.10, and its Python part runs on any version. The compiled part fits
    # one build of torch only; without it Detectron2 lacks just deformable convolution and rotated
    # boxes. The package also holds a top-level package named "tools", which must not stay.
    local site unpacked
    site=$("$python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
    unpacked=$(mktemp -d)
    pip_install --no-deps --only-binary=:all: --python-version 3.10 \
        --target "$unpacked" "$detectron2_package" || return 1
    rm -rf "$site/detectron2" "$site"/sal_detectron2-*.dist-info
    rm -f "$unpacked"/detectron2/_C*.so
    mv "$unpacked/detectron2" "$unpacked"/sal_detectron2-*.dist-info "$site/"
    rm -rf "$unpacked"
}

install_mmdet() {
    local wrapper compiler bin
    pip_install -r tools/requirements-mmdet.txt ||
        fail "pip could not install tools/requirements-mmdet.txt; its message is above"
    # Both stacks have the same import names: what the other one left must go.
    "$python" -m pip uninstall -qq -y "${other_packages[@]}" 2>/dev/null
    echo "Installing ${mm_packages[*]}. mmcv's operators are compiled where no wheel of this version is found:"
    echo "16 minutes on 2 cores, once. (A folder with such a wheel can be named in PIP_FIND_LINKS;"
    echo "MMDET=none leaves MMDetection out.)"
    # torch's headers take C++20, and mmcv asks for C++17: the last -std counts.
    compiler=${CXX:-c++}
    bin=$(cd "$venv/bin" && pwd)
    wrapper=$(mktemp)
    printf '#!/bin/sh\nexec %s "$@" -std=c++20\n' "$compiler" > "$wrapper"
    chmod +x "$wrapper"
    # Without dependencies: see tools/requirements-mmdet.txt.
    CXX=$wrapper NVCC_APPEND_FLAGS="${NVCC_APPEND_FLAGS:-} -std=c++20" PATH="$bin:$PATH" \
        pip_install --no-deps --no-build-isolation "${mm_packages[@]}" ||
        fail "MMDetection could not be installed; pip's message is above.
It takes a C++ compiler ($compiler) with C++20, or a compiled wheel of ${mm_packages[1]} in PIP_FIND_LINKS."
    rm -f "$wrapper"
    "$python" -W ignore -c 'import gram_backbones.mmdet' >/dev/null ||
        fail "gram_backbones.mmdet does not import; the message is above. Remove $venv and run this again."
}

check_environment
if ! is_done "$stamp" "$state"; then
    make_environment
    install_core
    echo "$state" > "$stamp"
fi
if [ "$mmdet" != none ] && ! is_done "$mm_stamp" "$mm_state"; then
    install_mmdet
    echo "$mm_state" > "$mm_stamp"
fi
