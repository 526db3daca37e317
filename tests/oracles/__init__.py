"""The papers' algorithms, written out literally in float64: slow, plain, and what the product is tested against."""
