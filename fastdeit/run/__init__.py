"""One run, from its `Config` to summary.json."""
