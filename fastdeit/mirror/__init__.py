"""A run at the URL of an object store: uploaded while it trains, and restored from there."""
