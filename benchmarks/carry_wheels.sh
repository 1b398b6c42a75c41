#!/usr/bin/env bash
# Fetch what a GPU machine without a package registry lacks beside PyTorch, Lightning, tensorboard, safetensors, rich
# and pytest, into .whl/ (16 MB), for Linux and Python 3.12 unless told otherwise. There, in this folder:
#
#     python3 -m pip install --no-index --no-deps --target .whl/site .whl/*.whl
#     PYTHONPATH=$PWD/.whl/site python3 -m benchmarks.gpu_check
set -euo pipefail
cd "$(dirname "$0")/.."
python="${1:-3.12}"
mkdir -p .whl
for package in gymnasium==1.4.0 farama-notifications tyro==1.0.17 docstring-parser typeguard box2d==2.3.10 ale-py==0.12.1 mujoco==3.3.7 glfw==2.11.0; do
    python3 -m pip download --quiet --no-deps --only-binary=:all: --python-version "$python" --implementation cp \
        --platform manylinux_2_28_x86_64 --platform manylinux_2_27_x86_64 --platform manylinux_2_17_x86_64 \
        --platform manylinux2014_x86_64 --platform manylinux1_x86_64 --dest .whl "$package"
done
