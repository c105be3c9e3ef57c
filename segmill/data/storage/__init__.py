"""Bytes on disk: labelled sets, images in and out, folders replaced atomically, work spread over processes."""
