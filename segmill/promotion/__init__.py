"""Gate, ledger and registry: whether a challenger is better, what was decided, and which version serves."""
