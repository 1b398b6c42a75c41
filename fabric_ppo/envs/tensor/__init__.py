"""Environments written as tensor code, equal to Gymnasium's of the same names."""
