"""The agent: loads one node version and calls it, once per frame, inside the sandbox.

Standard library only, any Python from 3.9 on, and in a sandbox one file (`joined`). It speaks
framed messages on a descriptor of its own, so nothing that user code prints can be taken for a
result. It is not a boundary: the sandbox is. What it sends is checked again outside.

What a node takes and gives: `plain` (JSON as values are written), `texts`, `kinds` and `unions`
(declared types), `codecs` and what it is made of, `carried` and `carried_codecs` (values in files),
`conversions` (of edges). A call: `main` and `agent` (frames and their answers), `channel`, `node`,
`meter`, `residue` and `rooms` (what a call may leave behind), `printed`, `beats` and `errors` (what
is told of it). Other ways to call: `together` (several at once), `apart`, `once` and `ahead` (each
in a process of its own). `confine` gives up rights before any user code is read.

What is imported at the top are modules in C, and those that a Python has loaded by itself: what
`json`, `re`, `enum` and `signal` import is most of what a sandbox takes to start, and many nodes
need none of it.
"""
