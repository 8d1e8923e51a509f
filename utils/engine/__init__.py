"""The machine: device, precision, processes, seeds, signals. Some of its modules need no torch."""
