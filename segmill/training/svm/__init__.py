"""Fitting the classical member: sampled pixels, an SVM and its calibration."""
