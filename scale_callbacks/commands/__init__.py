"""The commands of the command line, one a file; `scale_callbacks.cli` lists them."""
