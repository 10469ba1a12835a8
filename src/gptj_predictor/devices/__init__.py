"""What the machine has: its limits, the precision of each device, the placement of layers."""
