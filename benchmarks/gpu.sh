#!/usr/bin/env bash
# Everything that is to be measured on a GPU, in one go; prints tables for docs/benchmarks.md.
#
#     benchmarks/gpu.sh [PYTHON]
#
# The sizes are those of one released video, 33 frames of 768x480 (9 latent frames) by the 0.6B model.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${1:-python}

nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv || true
"$python" benchmarks/sampler.py --dtype=bfloat16 --tokens=1,22,36,64
"$python" benchmarks/sampler.py --dtype=bfloat16 --tokens=22,36 --batch=24
video=(--size=480x768 --frames=9 --ar_steps=64 --diffusion_steps=25 --text_len=256 --dtype=bfloat16
  --arch=vit_d16w1024,vit_d32w1024,mlp_d3w1280)
for sampler in xla pallas; do
  "$python" benchmarks/generate.py "${video[@]}" --batch=1 --sampler=$sampler
done
"$python" benchmarks/generate.py "${video[@]}" --batch=24 --calls=1
