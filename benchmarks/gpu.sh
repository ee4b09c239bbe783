#!/usr/bin/env bash
# Kernel tests and kernel benchmarks on a machine with a GPU: benchmarks/gpu.sh [python]
# Rows go to ${OUT:-benchmarks/results}. Needs torch, triton, timm, torchvision and pytest; neither DALI nor DeepSpeed.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${1:-python3}
out=${OUT:-benchmarks/results}
unset TRITON_INTERPRET
export PYTHONPATH=. PYTHONDONTWRITEBYTECODE=1
"$python" -c 'import torch; assert torch.cuda.is_available(), "no GPU here"; print(torch.cuda.get_device_name())'

"$python" -m pytest tests/kernels -p no:cacheprovider
for file in kernels/*.py; do
    op=$(basename "$file" .py)
    if [ -f "benchmarks/bench_$op.py" ]; then
        "$python" -m "benchmarks.bench_$op" --out "$out"
    else
        echo "left out: bench_$op (torch's own code so far)"
    fi
done
for package in nvidia.dali deepspeed; do
    "$python" -c "import $package" 2>/dev/null || echo "left out: what needs $package"
done
