"""Where samples come from. Write your loader in any file here; its class name is what the config says."""
