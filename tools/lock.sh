#!/bin/sh
# Write requirements.lock: one file for Python 3.11 to 3.14 on Linux and macOS, x86 and ARM. uv resolves for all of them
# at once and adds markers where they differ (NumPy left 3.11 behind), which pip's own tools cannot. No hashes: they would
# name the files of each platform. No registry is named either: pip takes the one the machine is set up with.
set -eu

uv=$(mktemp -d)
trap 'rm -rf "$uv"' EXIT
python3 -m venv "$uv"
"$uv/bin/pip" install --quiet uv
"$uv/bin/uv" pip compile --quiet --upgrade --universal --python-version 3.11 --extra demo --extra dev \
    --no-emit-index-url --custom-compile-command "make lock" --output-file requirements.lock pyproject.toml
