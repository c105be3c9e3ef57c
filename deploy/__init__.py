"""Running segmill in production: the stack of servers on one machine, and the same as containers."""
