"""What several benchmarks share: rows, times, counters, and the trainers that they measure."""
