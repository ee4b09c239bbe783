"""The exact backend on the device of the batch: decoded windows in one buffer, and the kernels."""
