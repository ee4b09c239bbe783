"""Images in Parquet files, as Hugging Face's `datasets` writes them: which, and what is in them."""
