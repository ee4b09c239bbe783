"""The parts that several benchmarks share: rows, times, counters, and measured trainers."""
