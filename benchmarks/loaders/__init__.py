"""The loaders that bench_pipeline compares: ours and its peers, each in a process of its own."""
