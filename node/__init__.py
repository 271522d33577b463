"""The program: the command line, the supervised processes, and the only place where packages meet."""
