"""Making data sets: what is written here, `facescale.data` reads."""
