"""The `segmill` command: one module per group of commands, thin, heavy imports inside."""
