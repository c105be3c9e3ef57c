"""Serves the champion: to those allowed, and nothing that the ledger does not promote."""
