"""Steps of the core: one kind of event per module, and what they share.

`attempts` and `runners` handle messages of runners, `requests` calls, `answers` results of the
background loops, `adoption` loaded runs. Any event may `begin` runs, and `follow` executes its
effects.
"""
