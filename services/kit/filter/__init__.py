"""The filter language and the sort orders of lists: a subset of AIP-160, compiled to SQL."""
