"""Tests of what must hold: a file for each property H1 to H9 of the design."""
