"""Config, engine, checkpoints, files, errors: what every folder uses. Import from its modules."""
