"""Work on a Ray cluster: connect to it, run a typed job there, wait for what it returns; light to import."""
