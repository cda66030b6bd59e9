"""Workflows written as Python: functions, the calls between them, and what stands between calls.

Of the standard library and `qflow.types` alone: a file of nodes and workflows loads without gRPC.
"""
