"""How new bytes come in: formats, intake, repair and the built-in sets."""
