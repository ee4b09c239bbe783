"""The needs of a run before it starts: steps, time, memory, CPU, bandwidth, room and cost."""
