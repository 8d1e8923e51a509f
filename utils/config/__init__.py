"""The configuration: read, checked, and turned into objects. Import its modules by name."""
