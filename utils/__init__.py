"""The machine, checkpoints on disk, names -> classes. Imports nothing of ours; import its modules by name."""
