"""Networks, losses and metrics that a config can name. Add yours in any file of this folder."""
