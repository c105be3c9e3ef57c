"""What the members and the ensemble are worth on the test split, in figures and on a page."""
