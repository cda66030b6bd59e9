"""Steps of the core: one kind of event in each module, and what all of them have.

What runners say is `attempts` and `runners`, what callers want `requests`, what was waited for and
is known by now `answers`, runs that are read from their rows `adoption`. With any of them runs may
`begin`, and what an event leaves to do is carried out by `follow`.
"""
