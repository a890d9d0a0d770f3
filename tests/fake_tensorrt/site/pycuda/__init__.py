"""What `import pycuda` gives in a process that has this folder on its path."""
