"""What is wrong with a set: file checks, mask faults, leaks, and the page that shows them."""
