"""Ray: runners as actors on a cluster's machines. Only this package imports Ray."""
