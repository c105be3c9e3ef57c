"""Gate, ledger and registry: whether a challenger is better, who decided what, and which version serves."""
