"""Where objects are built and wired together, a file for each process."""
