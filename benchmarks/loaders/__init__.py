"""The loaders that bench_pipeline compares: ours and its peers, each in its own process."""
