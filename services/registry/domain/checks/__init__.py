"""The parts of the check of a definition; each finds one kind of fault."""
