"""Which weights become zeros, in which pattern, and how the others make up for them."""
