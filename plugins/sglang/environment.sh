#!/usr/bin/env bash
# Builds an environment in which the tests of this plugin run the real SGLang: environment.sh FOLDER
#
# With a GPU, SGLang as its project publishes it. Without one, the same SGLang on a CPU build of torch, which must come
# from PyTorch's CPU index or a folder of wheels: pip's own variables and configuration say where. What SGLang asks
# for on top of that are CUDA builds; tests/cpu says what takes their place.
# What is there already is kept while nothing has changed that it was made from, so the folder can be cached.
set -euo pipefail
engine=SGLang folder=$1
here=$(cd "$(dirname "$0")" && pwd)
source "$here/../environment.sh"
sglang=0.5.23
nixl=1.5.0
lists=("$here"/tests/cpu/requirements*.txt)

install() { "$folder/bin/python" -m pip install --quiet --disable-pip-version-check "$@"; }
site() { "$folder/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))'; }

if ! is_current "${lists[@]}"; then
    "$python" -m venv --clear "$folder"
    if has_gpu; then
        install "sglang>=$sglang" "nixl>=0.7" openai
    else
        install -r "$here/tests/cpu/requirements.txt"
        install --no-deps -r "$here/tests/cpu/requirements-alone.txt" "sglang==$sglang" "nixl==$nixl" "nixl-cu13==$nixl"
        # It registers operators of a library that only loads beside CUDA; nothing here computes with them.
        : >"$(site)/torchvision/_meta_registrations.py"
    fi
    install -e "$root" -e "$here" pytest pytest-timeout
    mark_current "${lists[@]}"
fi
install --no-deps -e "$root" -e "$here"
has_gpu || echo "$here/tests/cpu" >"$(site)/sglang_on_cpu.pth"
