"""The engine: the journal that writes, and the held streams that carry what is written."""
