"""What a run will need, before it starts: steps, time, memory, CPU, bandwidth, room and cost."""
