"""Scores whole sets of images: masks and a table, by one verified version, each image once, on Ray."""
