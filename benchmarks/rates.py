"""The measured rates that `fastdeit estimate` uses, from the rows of the result files.

python -m benchmarks.rates

Writes fastdeit/estimate/rates.json, which an installed package has in place of the rows.
tests/benchmarks/test_rates.py fails if its values are not those of the rows.
"""

import json
import statistics
from collections.abc import Iterator
from typing import Any

import torch

from benchmarks.measuring.harness import RESULTS
from benchmarks.measuring.trainers import make_config
from benchmarks.tables import RUNS, Row, read_rows
from fastdeit.estimate.rates import TABLE
from fastdeit.models.build import build_model
from fastdeit.training.flops import count_flops, find_model

LOADERS = {"fastdeit exact": "exact", "fastdeit native": "native", "timm train.py": "timm"}
WHOLE = "+ RandomErasing = all"
Rate = dict[str, Any]


def cite(name: str, row: Row) -> str:
    """Return the file, date, commit and hardware of a row."""
    hardware = row.get("cpu") or row.get("gpu") or "a CPU"
    if find_model(row.get("gpu") or ""):
        hardware = row["gpu"]
    return f"{name}.csv, {row['date']}, commit {row['commit']}, {hardware}"


def collect_loaders() -> Iterator[Rate]:
    """Yield the CPU milliseconds of whole loaders for an image: for each case the median of the
    newest rows."""
    cases: dict[tuple[str, ...], list[Row]] = {}
    for row in read_rows("cpu-pipeline"):
        if row["impl"] in LOADERS and row["stage"] == WHOLE and row["copies"]:
            key = (LOADERS[row["impl"]], row["data"], row["size"], row["copies"])
            cases.setdefault(key, []).append(row)
    for (impl, data, size, copies), rows in cases.items():
        newest = rows[-RUNS:]
        value = statistics.median(float(row["cpu_ms"]) for row in newest)
        case = {"impl": impl, "data": data, "size": int(size), "copies": int(copies)}
        source = f"median of {len(newest)} rows to {cite('cpu-pipeline', newest[-1])}"
        yield case | {"value": value, "source": source}


def collect_cpu_steps() -> Iterator[Rate]:
    """Yield the GFLOP of training for each second of CPU time."""
    for row in read_rows("cpu-step"):
        config = make_config(row["student"], int(row["batch"]))
        with torch.device("meta"):
            model, _ = build_model(config, [str(label) for label in range(1000)])
        flops = count_flops(model, config.data.input_size)
        assert flops is not None
        rate = flops * int(row["batch"]) / float(row["ours_ms"]) / 1e6
        case: Rate = {name: row[name] for name in ("student", "dtype")}
        case |= {name: int(row[name]) for name in ("batch", "threads")}
        yield case | {"value": round(rate, 2), "source": cite("cpu-step", row)}


def collect_cpu_launches() -> Iterator[Rate]:
    """Yield the CPU milliseconds of a step with very little arithmetic: all blocks, one head of
    width 32."""
    for row in read_rows("cpu-x86-64"):
        case = (row["bench"], row["impl"], row["shape"])
        if case == ("engine", "ours", "toy 2") and row["cpu"]:
            yield {"value": float(row["host_ms"]), "source": cite("cpu-x86-64", row)}


def collect_gpu_steps() -> Iterator[Rate]:
    """Yield the images a second of whole steps on one GPU, of the models that are known."""
    for path in sorted(RESULTS.glob("*.csv")):
        for row in read_rows(path.stem):
            gpu = find_model(row.get("gpu") or "")
            whole = (row.get("bench"), row.get("impl"), row.get("mode"))
            if gpu and whole == ("engine", "ours", "step") and row["dtype"] == "bf16":
                student, batch = row["shape"].split()
                model = f"deit_{student}_distilled_patch16_224"
                case = {"gpu": gpu, "model": model, "batch": int(batch)}
                value = float(row["images_per_s"])
                yield case | {"value": value, "source": cite(path.stem, row)}


def collect_checkpoints() -> Iterator[Rate]:
    """Yield the bytes a second at which checkpoints were written and verified."""
    for row in read_rows("cpu-checkpoint"):
        seconds = float(row["write_s"]) + float(row["verify_s"])
        rate = float(row["mib"]) * 2**20 / seconds
        yield {
            "student": row["setting"],
            "value": round(rate),
            "source": cite("cpu-checkpoint", row),
        }


def collect_packed() -> Iterator[Rate]:
    """Yield the bytes and the CPU time of packed data sets, divided by those of their source."""
    for row in read_rows("cpu-pack"):
        case = {"packed": row["packed"], "bytes_ratio": float(row["bytes_ratio"])}
        yield case | {"value": float(row["exact_ratio"]), "source": cite("cpu-pack", row)}


def collect_resident() -> Iterator[Rate]:
    """Yield the most memory of a process with a loader and no model, in bytes."""
    rows = read_rows("cpu-loader-memory")
    most = max(rows, key=lambda row: float(row["rss_mib"]))
    value = round(float(most["rss_mib"]) * 2**20)
    yield {"value": value, "source": cite("cpu-loader-memory", most)}


def collect_rates() -> dict[str, list[Rate]]:
    """Return the tables of rates.json."""
    return {
        "loaders": list(collect_loaders()),
        "cpu_steps": list(collect_cpu_steps()),
        "cpu_launches": list(collect_cpu_launches()),
        "gpu_steps": list(collect_gpu_steps()),
        "checkpoints": list(collect_checkpoints()),
        "packed": list(collect_packed()),
        "resident": list(collect_resident()),
    }


def format_rates(tables: dict[str, list[Rate]]) -> str:
    """Return the text of rates.json, one row a line."""
    parts = []
    for name, rows in tables.items():
        lines = ",\n".join(f"  {json.dumps(row)}" for row in rows)
        parts.append(f' "{name}": [\n{lines}\n ]' if rows else f' "{name}": []')
    return "{\n" + ",\n".join(parts) + "\n}\n"


def main() -> None:
    TABLE.write_text(format_rates(collect_rates()), encoding="utf-8")
    print(TABLE)


if __name__ == "__main__":
    main()
