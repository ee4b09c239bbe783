"""Calls for a profiler: attention, norm and GELU, forward and backward, at DeiT-S's sizes.

ncu --clock-control none --csv --log-file ncu.csv python -m benchmarks.profiled
"""

import itertools

import torch

from benchmarks.measuring.workloads import WORKLOADS

OPS = ("attention", "norm", "gelu")

if __name__ == "__main__":
    for op in OPS:
        for name, call in itertools.islice(WORKLOADS[op](), 2):  # the first size is DeiT-S's
            call()
            torch.cuda.synchronize()
            print(op, name, flush=True)
