"""Process basics: errors and exit statuses, console, files, launcher, ranks, signals, profile."""
