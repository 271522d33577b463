"""The program: command line, supervised processes, and the only place where packages meet."""
