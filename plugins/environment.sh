# What the environment.sh of each plugin has in common. To be sourced, with `engine` (its name for people), `folder` and
# `here` (the plugin's own folder) set: `is_current` says whether what is in the folder was made from the same as now,
# `mark_current` that it is. So the folder can be cached.
# shellcheck shell=bash
root=$(cd "$here/../.." && pwd)
python=${PYTHON:-$(command -v python3.11 || command -v python3)}
trap 'echo "error: the environment of $engine could not be built in $folder: see above" >&2' ERR

has_gpu() { command -v nvidia-smi >/dev/null && nvidia-smi >/dev/null 2>&1; }

requirements() {  # what a project needs, whatever else is written in its file
    "$python" -c 'import sys, tomllib
for path in sys.argv[1:]:
    project = tomllib.load(open(path, "rb"))["project"]
    print(project["name"], project["requires-python"], project["dependencies"], project["optional-dependencies"])' "$@"
}

stamp() {  # stamp FILE...: of the projects, the machine, and the files that say what is installed
    (
        requirements "$root/pyproject.toml" "$here/pyproject.toml"
        "$python" --version
        has_gpu && echo gpu || echo cpu
        cat "$here/../environment.sh" "$here/environment.sh" "$@"
    ) | sha256sum
}

is_current() { [ "$(cat "$folder/.made-from" 2>/dev/null)" = "$(stamp "$@")" ]; }
mark_current() { stamp "$@" >"$folder/.made-from"; }
