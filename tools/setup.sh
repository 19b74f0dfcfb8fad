#!/bin/sh
# Build the virtual environment $1: a Python that is new enough, the locked packages, this project (editable).
set -eu

venv=$1
new_enough='import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))'

find_python() {
    for name in ${PYTHON:-python3 python3.13 python3.12 python3.11 python3.14}; do
        if command -v "$name" >/dev/null && "$name" -c "$new_enough" 2>/dev/null; then
            command -v "$name"
            return
        fi
    done
    echo "No Python 3.11 or newer with its venv module was found (looked for: ${PYTHON:-python3, python3.11 to 3.14})." >&2
    echo "Install one (Debian, Ubuntu: apt-get install python3 python3-venv), or name it: make setup PYTHON=/path/to/python3" >&2
    exit 1
}

python=$(find_python)
if ! "$venv/bin/python" -c "$new_enough" 2>/dev/null; then
    echo "Making $venv with $($python --version)"
    "$python" -m venv --clear "$venv"
fi
echo "Installing the locked packages (the first time this takes a few minutes)"
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check --requirement requirements.lock
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps --editable .
