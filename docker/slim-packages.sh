#!/bin/sh
# Runs inside the build: removes from /opt/svitlo what a running service never opens, then compiles the rest to bytecode.
set -eu
cd /opt/svitlo/lib/python3.11/site-packages

# Installers; headers, libraries to link against, and tools to build with; test suites.
rm -rf pip pip-* setuptools setuptools-* pkg_resources _distutils_hack distutils-precedence.pth
find torch/bin -type f ! -name torch_shm_manager -delete 2>/dev/null || true
rm -rf torch/include torch/share torch/test torch/lib/*.a pyarrow/include pyarrow/src
rm -rf matplotlib/mpl-data/sample_data
for package in matplotlib mpmath networkx numpy pandas pyarrow sympy; do
    if [ -d "$package" ]; then find "$package" -type d -name tests -prune -exec rm -rf {} +; fi
done
find . \( -name '*.pyi' -o -name '*.pxd' \) -delete
cd /opt/svitlo
find bin -mindepth 1 ! -name 'python*' -delete
rm -rf include share/man

# Unchecked: the files never change, so Python need not compare their times at every start. Not compiled: models other than
# GPT-2, which would double the size of transformers, and one file of torch that needs a newer Python.
python3 -m compileall -q -j 0 --invalidation-mode unchecked-hash \
    -x 'transformers/models/(?!(auto|encoder_decoder|gpt2)/)[^/]+/|torch/testing/_internal/py312_' lib
