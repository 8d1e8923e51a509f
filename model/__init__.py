"""Networks, losses and metrics: what the config's arch, loss and metrics name. Write yours in any file here."""
