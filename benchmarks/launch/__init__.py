"""A start's time: its costs measured, and the model of many ranks."""
