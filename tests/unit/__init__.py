"""Tests of single modules, in folders as the package has them."""
