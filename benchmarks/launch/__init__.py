"""The time of a start: its measured costs, and the model of many ranks."""
