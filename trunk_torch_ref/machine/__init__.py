"""What the machine has: the device to compute on."""
