"""Images in Parquet files, as Hugging Face's `datasets` writes them: the files and their images."""
