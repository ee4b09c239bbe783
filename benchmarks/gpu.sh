#!/usr/bin/env bash
# Tests and benchmarks of the kernels, and of the whole step, on a machine with a GPU: benchmarks/gpu.sh [python]
# Rows go to ${OUT:-benchmarks/results}, one short table of them is printed last. Takes less than 9 minutes.
# Needs torch, triton, timm, torchvision, pytest; what else is missing is named and left out.
set -uo pipefail
cd "$(dirname "$0")/.."
python=${1:-python3}
out=${OUT:-benchmarks/results}
unset TRITON_INTERPRET
export PYTHONPATH=. PYTHONDONTWRITEBYTECODE=1
"$python" -c 'import torch; assert torch.cuda.is_available(), "no GPU here"; print(torch.cuda.get_device_name())' || exit 1
mkdir -p "$out"
failed=()

part() { # part SECONDS NAME COMMAND...: run it for at most so long, go on whatever comes of it
    local limit=$1 name=$2 start=$SECONDS
    shift 2
    timeout "$limit" "$@" > "$out/$name.log" 2>&1 || failed+=("$name ($?)")
    echo "$name: $((SECONDS - start)) s; $(tail -n 1 "$out/$name.log")"
}

"$python" -c "import hypothesis" 2>/dev/null || echo "left out: tests over random shapes (need hypothesis)"
part 120 tests "$python" -m pytest tests/kernels -p no:cacheprovider --ignore tests/kernels/test_resources.py
for op in attention norm mix distill gelu augment ema checksum; do
    part 40 "bench_$op" "$python" -m "benchmarks.bench_$op" --out "$out"
done
part 150 bench_step "$python" -m benchmarks.bench_step --out "$out" --seconds 110
if "$python" -c "import nvidia.dali, numba, pyarrow" 2>/dev/null; then
    part 120 tests_loader "$python" -m pytest tests/test_pipeline.py tests/test_loader.py -m gpu -p no:cacheprovider
    part 120 bench_settings "$python" -m benchmarks.bench_settings -o "$out/loader-settings.csv"
else
    echo "left out: the loader (needs DALI, numba and pyarrow)"
fi
"$python" -c "import deepspeed" 2>/dev/null || echo "left out: what needs deepspeed"

"$python" -m benchmarks.summary "$out"
if [ ${#failed[@]} -gt 0 ]; then
    echo "failed: ${failed[*]}; see $out/*.log"
    exit 1
fi
