"""Report of runs as one HTML file, which needs no network."""
