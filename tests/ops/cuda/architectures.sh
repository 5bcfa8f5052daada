#!/bin/sh
# Compiles every kernel for chips that the default build leaves out: Turing, Ampere, Ada, Blackwell.
#   architectures.sh NVCC [FILE.cu ...]      all of them if no file is named
set -eu
nvcc=$1
shift
cd "$(dirname "$0")/../../.."
out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT
[ $# -gt 0 ] || set -- $(find src/ops/cuda src/parallel/cuda -name '*.cu')
for file in "$@"; do
  for arch in 75 80 89 100; do
    "$nvcc" -std=c++20 --expt-relaxed-constexpr -O1 -Isrc -cubin -arch=sm_$arch -o "$out/out.cubin" "$file"
    echo "sm_$arch $file"
  done
done
