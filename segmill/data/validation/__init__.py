"""What is wrong with a set: file checks, mask issues, leaks, and the page that shows them."""
