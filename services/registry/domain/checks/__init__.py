"""The parts of the check of a definition, each of which finds one kind of fault."""
