#!/usr/bin/env bash
# Builds an environment in which the tests of this plugin run the real SGLang: environment.sh FOLDER
#
# With a GPU, SGLang as its project publishes it. Without one, the same SGLang on a CPU build of torch, which must come
# from PyTorch's CPU index or a folder of wheels: pip's own variables and configuration say where. The packages that
# SGLang asks for on top of that are CUDA builds; those in tests/cpu stand in for what a CPU has no use for.
# What is there already is kept, so the folder can be cached.
set -euo pipefail
folder=$1
here=$(cd "$(dirname "$0")" && pwd)
python=${PYTHON:-$(command -v python3.11 || command -v python3)}
sglang=0.5.23
nixl=1.5.0
made_for="cpu=$sglang nixl=$nixl 1"

if [ "$(cat "$folder/.made-for" 2>/dev/null)" != "$made_for" ]; then
    "$python" -m venv --clear "$folder"
    install() { "$folder/bin/python" -m pip install --quiet --disable-pip-version-check "$@"; }
    if command -v nvidia-smi >/dev/null && nvidia-smi >/dev/null 2>&1; then
        install "sglang>=$sglang" "nixl>=0.7"
    else
        install -r "$here/tests/cpu/requirements.txt"
        # Their requirements are CUDA builds, of which none is used on a CPU.
        install --no-deps -r "$here/tests/cpu/requirements-alone.txt" "sglang==$sglang" "nixl==$nixl" "nixl-cu13==$nixl"
        site=$("$folder/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
        # It registers operators of a library that only loads beside CUDA; nothing here computes with them.
        : >"$site/torchvision/_meta_registrations.py"
        echo "$here/tests/cpu" >"$site/sglang_on_cpu.pth"
    fi
    install httptools pluggy pytest pytest-timeout xxhash
    echo "$made_for" >"$folder/.made-for"
fi
"$folder/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps -e "$here/../.." -e "$here"
