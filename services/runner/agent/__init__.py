"""The agent: loads one node version and calls it, once per frame, inside the sandbox.

Standard library only, for any Python from 3.9 on, in one file inside a sandbox (`joined`). It sends
frames on its own descriptor, so that no output of user code can be mistaken for a result. It is not
a security boundary, the sandbox is: all that it sends is checked again outside.

Values of nodes: `plain` (JSON as values are written), `texts`, `kinds` and `unions` (declared
types), `codecs` and its parts, `carried` and `carried_codecs` (values in files), `conversions` (of
edges). Calls: `main` and `agent` (frames and replies), `channel`, `node`, `meter`, `residue` and
`rooms` (what calls leave behind), `printed`, `beats` and `errors` (what is reported of a call).
Other kinds of calls: `together` (several at once); `apart`, `once` and `ahead` (each in a process
of its own). `confine` drops privileges before user code is read.

Imports at the top are modules in C and those that a Python loads anyway: what `json`, `re`, `enum`
and `signal` import takes most of a sandbox's start, and many nodes do not need it.
"""
