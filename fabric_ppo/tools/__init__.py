"""Command line, benchmark suite, plots and videos: what one does around a run."""
