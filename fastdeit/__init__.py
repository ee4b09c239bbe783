"""fastdeit: a high-throughput, exactly replayable training pipeline for Data-efficient image
Transformers."""

__version__ = "0.1.0"
