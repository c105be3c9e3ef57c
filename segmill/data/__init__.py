"""The data room: from labelled image files to checked, split, packed, augmented batches."""
