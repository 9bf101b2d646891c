"""What the machine has: devices, other processes, memory."""
