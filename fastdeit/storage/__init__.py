"""Files that are whole or absent: atomic writes, JSON lines, tensor files, the run folder."""
