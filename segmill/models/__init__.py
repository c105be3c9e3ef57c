"""Members: backbone plus decoder, their starting weights, their folder."""
