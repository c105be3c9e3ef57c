"""The classical member: features of each pixel and an SVM on them."""
