#!/usr/bin/env bash
# Tests and benchmarks on a machine with a GPU, in steps; docs/gpu.md describes each step and the rehearsal without a GPU.
set -uo pipefail
cd "$(dirname "$0")/.." || exit
steps='  kernels  the machine, the tests of all kernels, attention against its peers, the step of the engine
  train    the tests of the data path, the recipes, stops and ZeRO stages under the launcher, DeiT-S end to end
  step     the step of the model against timm, norm and GELU against their peers
  loader   fast paths that are off; what limits a run: rates of the loader, the step and both together; the settings of the loader
  tune     the profile of the kernels, the MLP in its forms, a new table of launches
  teacher  the teacher in its forms, a whole step with --compile on
  others   mix, normalise, distill, augment, resize, EMA and checksum against their peers; memory by plan'
step=${1:-} python=${2:-python3} device=${DEVICE:-cuda} out=${OUT:-build/gpu}
if ! grep -q "^  $step  *[a-z]" <<<"$steps"; then
    printf 'benchmarks/gpu.sh STEP [python], each in less than 9 minutes; DEVICE=cpu rehearses it\n%s\n' "$steps"
    exit 2
fi
mkdir -p "$out"
out=$(realpath "$out") work=$(mktemp -d) failed=()
mkdir "$work/rows"
unset TRITON_INTERPRET PYTHONDONTWRITEBYTECODE
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1
tests=(tests/kernels -n 8 --ignore tests/kernels/test_resources.py) patience=1
if [ "$device" = cpu ]; then
    patience=10
    export CUDA_VISIBLE_DEVICES='' DS_ACCELERATOR=cpu
    tests=(tests/kernels/test_interpreter.py tests/kernels/test_launch_configs.py -n 2)
else
    "$python" -c 'import torch; assert torch.cuda.is_available(), "no GPU here"' || exit 1
fi

need() { # need MODULE...: succeed if all can be imported; print what cannot, and why
    local module error code=0
    for module in "$@"; do
        error=$("$python" -c "import $module" 2>&1) || { code=1 && echo "skipped, $module is missing: ${error##*$'\n'}"; }
    done
    return $code
}

part() { # part SECONDS NAME COMMAND...: run it within a time limit, report how it ended, and return in any case
    local limit=$1 name=$2 start=$SECONDS code=0 lines=1
    shift 2
    # after SIGINT, pytest and Python still report what failed and where they were
    timeout --signal=INT --kill-after=5 $((limit * patience)) "$@" </dev/null >"$work/$name.log" 2>&1 || code=$?
    [ $code -eq 0 ] || { failed+=("$name ($code)") && lines=15; }
    echo "$name: $((SECONDS - start)) s"
    tail -n $lines "$work/$name.log" | cut -c 1-200
    tail -c 1000000 "$work/$name.log" >"$work/log" && mv "$work/log" "$work/$name.log"
    pack
}

pack() { # put the rows, logs and small files of the runs into one archive, which is whole at any moment
    cp "$out"/*.csv "$work/rows" 2>/dev/null
    (cd "$work" && find . \( -name checkpoints -o -name data \) -prune -o -type f -size -1024k ! -name '*.parquet' -print0) |
        tar -czf "$out/all.tgz.part" -C "$work" --null -T -
    # tar only warns of a file that changes or disappears while it reads
    gzip -t "$out/all.tgz.part" && mv "$out/all.tgz.part" "$out/all.tgz"
}

bench() { # bench SECONDS NAME [FLAG...]: benchmarks/bench_NAME.py
    local limit=$1 name=$2
    shift 2
    part "$limit" "$name" "$python" -m "benchmarks.bench_$name" --out "$out" "$@"
}

pytest() { # pytest SECONDS NAME ARGUMENT...: failures are last, in the part of the log that is shown
    local limit=$1 name=$2
    shift 2
    part "$limit" "$name" "$python" -m pytest -p no:cacheprovider --tb=short -rfE --durations=10 "$@"
}

run_kernels() {
    local facts=name,driver_version,memory.total,clocks.max.sm,power.limit
    if command -v nvidia-smi >/dev/null; then part 10 nvidia-smi nvidia-smi --query-gpu=$facts --format=csv,noheader; fi
    bench 30 ceilings
    need hypothesis
    need xdist && pytest 270 tests_kernels "${tests[@]}"
    bench 60 attention --cases 2
    need deepspeed && bench 130 engine --seconds 80
}

run_train() {
    local limit name
    need nvidia.dali numba pyarrow tyro deepspeed || return
    pytest 45 tests_exact -m gpu -n 3 tests/data/device tests/data/loaders/test_packed.py \
        tests/library/test_augmentation.py
    pytest 70 tests_data -m gpu -n 3 --dist loadfile --distances "$out/distances.csv" \
        tests/data/augment/test_native.py tests/data/graphs/test_pipeline.py tests/data/loaders/test_train.py
    while read -r limit name; do
        part "$limit" "$name" "$python" -m benchmarks.bench_runs "$name" --folder "$work" --out "$out"
    done <<<'60 digits_teacher
75 digits
80 native-mixed
35 exact-cpu
40 exact-cpu-gpu
35 native-hardware
55 stages'
}

run_step() {
    need deepspeed && pytest 60 tests_step -m gpu tests/training
    bench 270 step --seconds 210
    bench 75 norm --cases 2
    bench 75 gelu --cases 2
}

run_loader() {
    need deepspeed && bench 95 paths --seconds 60
    need nvidia.dali numba pyarrow tyro deepspeed || return
    bench 200 train --seconds 120
    local cores
    cores=$(env -u OMP_NUM_THREADS nproc)
    part 90 settings "$python" -m benchmarks.bench_settings -o "$out/loader-settings.csv" --threads "$cores" --prefetch 2
}

run_tune() {
    if [ "$device" = cpu ]; then echo 'skipped, needs a GPU: everything' && return; fi
    local sections=(SpeedOfLight LaunchStats Occupancy WarpStateStats ComputeWorkloadAnalysis MemoryWorkloadAnalysis)
    if command -v ncu >/dev/null; then
        part 120 profile ncu --clock-control none "${sections[@]/#/--section=}" --kernel-name 'regex:_attention|_norm|_gelu' \
            --csv --log-file "$out/ncu.csv" "$python" -m benchmarks.profiled
    else
        echo 'skipped, ncu is missing: the profile'
    fi
    bench 60 mlp --cases 2
    part 240 tune "$python" -m benchmarks.tune --only attention --seconds 150
    part 90 tune_mlp "$python" -m benchmarks.tune --only mlp --seconds 30
    cp kernels/launch_configs.json "$out"
}

run_teacher() {
    need deepspeed pyarrow || return
    pytest 60 tests_teacher -m gpu tests/models/teachers
    bench 240 teacher_forms
    bench 200 compile --cases 2
}

run_others() {
    local name
    for name in mix normalise distill augment resize ema checksum; do bench 64 "$name"; done
    need deepspeed && bench 45 memory
}

"$python" -m compileall -q -j0 benchmarks fastdeit kernels tests
"run_$step"
"$python" -m benchmarks.summary "$out"
if [ ${#failed[@]} -gt 0 ]; then
    echo "failed: ${failed[*]}; their logs are in $out/all.tgz"
    exit 1
fi
