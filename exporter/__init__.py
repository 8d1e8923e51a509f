"""Write trained networks as files for other programs, prove and compare them."""
