"""What runs in what order; each flow reads as a sentence. No arithmetic, no torch."""
