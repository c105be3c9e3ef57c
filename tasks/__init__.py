"""One module per step of the pipeline: reads the workspace, calls segmill, writes the workspace."""
