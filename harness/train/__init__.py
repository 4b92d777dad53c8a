"""What runs inside a trainer, with torch: decoding, scoring, training."""
