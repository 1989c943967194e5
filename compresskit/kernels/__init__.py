"""Fast arithmetic: tensors in, tensors out."""
