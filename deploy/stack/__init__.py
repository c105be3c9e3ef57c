"""The servers of a production on one machine, on loopback only: `python -m deploy.stack up`."""
