"""The filter language and the orders of every list: a subset of AIP-160, compiled to SQL."""
