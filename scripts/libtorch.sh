#!/usr/bin/env bash
# Prints the environment that building and running with the `libtorch` feature needs:
#
#     eval "$(scripts/libtorch.sh)"
#
# With LIBTORCH set to a C++ distribution of libtorch, that one is used. Otherwise PyTorch's own
# copy is, installed into a virtual environment under BURN_ZOO_CACHE (default ~/.cache/burn-zoo)
# the first time.
set -euo pipefail

torch_version=2.9.0 # the one that tch 0.22 binds

if [ -n "${LIBTORCH:-}" ]; then
    libraries="$LIBTORCH/lib"
    echo "export LIBTORCH='$LIBTORCH'"
else
    venv="${BURN_ZOO_CACHE:-$HOME/.cache/burn-zoo}/venv"
    [ -x "$venv/bin/python3" ] || python3 -m venv "$venv"
    if ! "$venv/bin/python3" -c "import torch; assert torch.__version__.startswith('$torch_version')" 2>/dev/null; then
        echo "installing torch $torch_version into $venv" >&2
        "$venv/bin/pip" install --quiet "torch==$torch_version" >&2
    fi
    packages=$("$venv/bin/python3" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
    libraries="$packages/torch/lib"
    for folder in "$packages"/nvidia/*/lib; do
        [ -d "$folder" ] && libraries="$libraries:$folder"
    done
    echo "export LIBTORCH_USE_PYTORCH=1"
    echo "export PATH='$venv/bin':\"\$PATH\""
fi
[ "$(uname)" = Darwin ] && variable=DYLD_LIBRARY_PATH || variable=LD_LIBRARY_PATH
echo "export $variable='$libraries'\"\${$variable:+:\$$variable}\""
