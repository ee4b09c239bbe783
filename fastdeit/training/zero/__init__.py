"""DeepSpeed under the training step: its settings, flat parameters, partitions by name."""
