#!/usr/bin/env bash
# Tests and benchmarks of kernels and loader on a machine with a GPU: benchmarks/gpu.sh [python]
# Rows go to ${OUT:-benchmarks/results}. Needs torch, triton, timm, torchvision and pytest; with DALI also the loader.
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
if "$python" -c "import nvidia.dali, numba, pyarrow" 2>/dev/null; then
    "$python" -m pytest tests/test_pipeline.py tests/test_loader.py -m gpu -p no:cacheprovider
    "$python" -m benchmarks.bench_settings -o "$out/loader-settings.csv"
else
    echo "left out: the loader (needs DALI, numba and pyarrow)"
fi
"$python" -c "import deepspeed" 2>/dev/null || echo "left out: what needs deepspeed"
