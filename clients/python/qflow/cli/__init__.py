"""The command line `qflow`."""
