"""Where samples come from. Write your loader in any file here; the config names its class."""
