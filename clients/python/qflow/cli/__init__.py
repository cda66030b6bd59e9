"""The command `qflow`: what a person does with a Qflow, in a shell."""
